//! What a control itself says about a flow, whatever tool it comes from.

pub mod cilium;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use jiff::Timestamp;
use probe::Protocol;
use serde::Serialize;

/// The five things by which an attempt and an event are known to be about the same packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct FiveTuple {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
}

/// One thing that the control reported about one packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlowEvent {
    /// Which packet.
    #[serde(flatten)]
    pub tuple: FiveTuple,
    /// What was done with it.
    pub report: FlowReport,
    /// The source's security identity, if told.
    pub source_identity: Option<u32>,
    /// The destination's security identity, if told.
    pub destination_identity: Option<u32>,
    /// The endpoint that it was reported for.
    pub endpoint: Option<u32>,
    /// When it was heard.
    pub heard: Timestamp,
}

/// What the control says that it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowReport {
    /// The packet was dropped.
    Dropped {
        /// The control's words.
        reason: String,
    },
    /// A policy was consulted.
    Verdict {
        /// With what result.
        action: Action,
        /// `ingress` or `egress`.
        direction: String,
    },
}

impl FlowReport {
    /// Dropped for want of a rule that allows it: a drop for want of memory is no proof of a policy, and
    /// `Policy denied by denylist` is the work of a deny rule, which a Kubernetes network policy cannot have.
    pub fn is_policy_drop(&self) -> bool {
        matches!(self, FlowReport::Dropped { reason } if reason == "Policy denied")
    }

    /// Would have been stopped, but was let through and reported.
    pub fn is_audit(&self) -> bool {
        matches!(
            self,
            FlowReport::Verdict {
                action: Action::Audit,
                ..
            }
        )
    }
}

impl fmt::Display for FlowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlowReport::Dropped { reason } => write!(f, "a drop ({reason})"),
            FlowReport::Verdict { action, direction } => {
                let action = match action {
                    Action::Allow => "allow",
                    Action::Deny => "deny",
                    Action::Audit => "audit",
                    Action::Redirect => "redirect",
                };
                write!(f, "the {direction} policy verdict \"{action}\"")
            }
        }
    }
}

/// Result of a policy verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Let through by a rule.
    Allow,
    /// Stopped.
    Deny,
    /// Let through although the policies deny it.
    Audit,
    /// Sent to a proxy.
    Redirect,
}

/// What the control says about a pod's endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointFact {
    /// The endpoint's number on its node.
    pub id: u32,
    /// Its security identity.
    pub identity: Option<u32>,
    /// Its state, `ready` when all is well.
    pub state: String,
    /// Policies apply to what comes in.
    pub ingress: bool,
    /// Policies apply to what goes out.
    pub egress: bool,
    /// Denied traffic is reported and let through.
    pub audit: bool,
    /// The policy revision that its datapath runs.
    pub revision: Option<i64>,
}

/// The policies that an agent has taken in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Repository {
    /// Grows with every change. An endpoint at a lower revision does not do all of it yet.
    pub revision: i64,
    /// The API objects that its rules come from.
    pub uids: BTreeSet<String>,
}
