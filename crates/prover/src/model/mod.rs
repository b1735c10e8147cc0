//! What Kubernetes says that a set of network policies allows.
//!
//! Our own types, not the API's: here an absent list and an empty one have already become what they mean.

mod decide;
mod manifest;
mod parse;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
pub use probe::Protocol;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use self::decide::{Allowance, Decision, Direction, SideDecision, decide};
pub use self::manifest::{Problem, Problems, World, parse_manifests, parse_value};
pub use self::parse::parse_selector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

impl PodRef {
    /// A reference from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> PodRef {
        PodRef {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The text is not `namespace/name`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not of the form namespace/name")]
pub struct NotAPodRef(String);

impl FromStr for PodRef {
    type Err = NotAPodRef;

    fn from_str(text: &str) -> Result<PodRef, NotAPodRef> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(PodRef::new(namespace, name))
            }
            _ => Err(NotAPodRef(text.to_owned())),
        }
    }
}

impl Serialize for PodRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PodRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PodRef, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels, with `kubernetes.io/metadata.name`, which the API server adds.
    pub labels: Labels,
}

/// A pod, as far as policies can see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub reference: PodRef,
    /// Its labels.
    pub labels: Labels,
    /// Its address, once it runs.
    pub ip: Option<IpAddr>,
    /// The container ports that it declares.
    pub ports: Vec<ContainerPort>,
}

/// A declared container port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its number.
    pub number: u16,
    /// TCP unless said otherwise; ports of other protocols are not modelled.
    pub protocol: Protocol,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The labels of its backends. Empty: it has none of its own.
    pub selector: Labels,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// Whether the pod is a backend.
    pub fn selects(&self, pod: &Pod) -> bool {
        !self.selector.is_empty()
            && self.namespace == pod.reference.namespace
            && self
                .selector
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The port on which the service is reached.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The backend's port.
    pub target: PortRef,
}

/// A port by number or by the name that a container gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRef {
    /// A number.
    Number(u16),
    /// A container port's name.
    Name(String),
}

impl PortRef {
    /// The number in the given pod.
    pub fn resolve(&self, pod: &Pod, protocol: Protocol) -> Option<u16> {
        match self {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => pod
                .ports
                .iter()
                .find(|port| port.protocol == protocol && port.name.as_ref() == Some(name))
                .map(|port| port.number),
        }
    }
}

/// A network policy (`networking.k8s.io/v1`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pods it is about; those of its own namespace only.
    pub subject: Selector,
    /// Ingress rules, or `None` if it says nothing about ingress. An empty list isolates.
    pub ingress: Option<Vec<Rule>>,
    /// Egress rules, or `None` if it says nothing about egress. An empty list isolates.
    pub egress: Option<Vec<Rule>>,
}

/// One ingress or egress rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Who may be on the other side. `None`, from an absent or an empty list, is everybody.
    pub peers: Option<Vec<Peer>>,
    /// Which ports. `None`, from an absent or an empty list, is all of them.
    pub ports: Option<Vec<PolicyPort>>,
}

/// The other side of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Pods by labels.
    Pods {
        /// Which namespaces. `None` is the policy's own.
        namespaces: Option<Selector>,
        /// Which pods in them. `None` is all.
        pods: Option<Selector>,
    },
    /// An address range. By the letter of the API this also matches pods; implementations differ,
    /// and Cilium for one does not match pods in the cluster by their address.
    Block {
        /// The range.
        cidr: IpNet,
        /// Ranges cut out of it.
        except: Vec<IpNet>,
    },
}

/// The ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyPort {
    /// The protocol; `None` is one that the probes do not speak (SCTP), which therefore never matches.
    pub protocol: Option<Protocol>,
    /// Which ports of it.
    pub ports: PortMatch,
}

/// Which ports a rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortMatch {
    /// Every port.
    Any,
    /// From first to last, both included.
    Range(u16, u16),
    /// The port that the destination pod gives this name.
    Named(String),
}

/// A label selector. Without requirements it selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// All of them must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// The label is there and has one of the values.
    In(String, Vec<String>),
    /// The label is absent or has none of the values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
}

impl Selector {
    /// Whether the labels fulfil every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| match requirement {
                Requirement::In(key, values) => {
                    labels.get(key).is_some_and(|value| values.contains(value))
                }
                Requirement::NotIn(key, values) => {
                    labels.get(key).is_none_or(|value| !values.contains(value))
                }
                Requirement::Exists(key) => labels.contains_key(key),
                Requirement::DoesNotExist(key) => !labels.contains_key(key),
            })
    }
}
