//! Everything that was seen in one proof. The judge sees this and nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use probe::Outcome;
use serde::Serialize;

use crate::evidence::{EndpointFact, FlowEvent, Repository};
use crate::model::{Labels, PodRef};
use crate::policies::PolicyObject;
use crate::table::{Cell, CellId};

/// A whole proof: the table, and the three passes over it on the same pods.
#[derive(Debug, Clone, Serialize)]
pub struct Trial {
    /// The expected table.
    pub cells: Vec<Cell>,
    /// The pods as they were when the probing began.
    pub pods: BTreeMap<PodRef, PodFact>,
    /// The scenario's policies, by namespace and name.
    pub policies: Vec<PodRef>,
    /// One evidence channel for each node that hosts a probed pod.
    pub channels: Vec<Channel>,
    /// With the policies.
    pub enforced: Pass,
    /// With the policies taken away.
    pub lifted: Option<Pass>,
    /// With the policies put back.
    pub restored: Option<Pass>,
}

/// Whether the control's own events of a node can be heard.
#[derive(Debug, Clone, Serialize)]
pub struct Channel {
    /// The node.
    pub node: String,
    /// The control's agent pod there, if there is one.
    pub agent: Option<String>,
    /// Why nothing, or not everything, was heard. `None`: it listened all the time.
    pub down: Option<String>,
}

/// One time over the whole table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Pass {
    /// When the deciding round began.
    pub started: Timestamp,
    /// How long the deciding round took, with its evidence.
    pub duration_ms: u64,
    /// How many rounds it took until the table was as expected, or the deadline was over.
    pub rounds: u32,
    /// The pods as they were at the end of the pass.
    pub pods: BTreeMap<PodRef, PodFact>,
    /// Why a probed pod is missing among `pods`.
    pub absent: BTreeMap<PodRef, String>,
    /// The policies about the probed pods before the first round.
    pub policies_before: Vec<PolicyObject>,
    /// The same after the last round.
    pub policies_after: Vec<PolicyObject>,
    /// The control's endpoints at the end of the pass.
    pub endpoints: BTreeMap<PodRef, EndpointFact>,
    /// Nodes on which the control's endpoints could not be read, with the reason.
    pub unread: BTreeMap<String, String>,
    /// What the control's agent on each node had taken in at the end of the pass, or why that is not known.
    pub repositories: BTreeMap<String, Result<Repository, String>>,
    /// What came of each cell.
    pub observations: Vec<Observation>,
    /// What the control reported meanwhile.
    pub events: Vec<FlowEvent>,
    /// How many events the control says that it lost meanwhile.
    pub lost_events: u64,
    /// Probe sessions that ended, with the reason.
    pub lost_sessions: BTreeMap<PodRef, String>,
}

impl Pass {
    /// The observation of a cell.
    pub fn observation(&self, cell: &CellId) -> Option<&Observation> {
        self.observations
            .iter()
            .find(|observation| observation.cell == *cell)
    }
}

/// What makes a pod the same pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodFact {
    /// The API object.
    pub uid: String,
    /// Restarts of its container.
    pub restarts: i32,
    /// Its address.
    pub ip: IpAddr,
    /// Its node.
    pub node: String,
    /// Its labels, by which policies select it.
    pub labels: Labels,
}

/// What came of one cell in one pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// Which cell.
    pub cell: CellId,
    /// The nonce of the deciding attempt.
    pub nonce: String,
    /// How the attempt ended.
    pub outcome: Outcome,
    /// Whether a TCP handshake was completed.
    pub connected: bool,
    /// Source address and port.
    pub source: Option<SocketAddr>,
    /// What was dialled.
    pub destination: Option<SocketAddr>,
    /// Time taken.
    pub elapsed_us: u64,
    /// Whether the destination's server says that the nonce arrived. `None`: it could not be asked.
    pub received: Option<bool>,
    /// How many attempts the pass made on this cell.
    pub tries: u32,
}
