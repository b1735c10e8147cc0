//! The words that a prover and the probe inside a pod say to each other.
//!
//! One JSON document a line: requests on the agent's stdin, responses on its stdout.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Time that one attempt gets when nothing else is asked for.
///
/// It stays under the kernel's first retransmission (1 s), so that one attempt is one SYN and one SYN is one drop event.
pub const DEFAULT_TIMEOUT_MS: u64 = 800;

/// How many attempts of one batch run at the same moment.
pub const MAX_CONCURRENT_ATTEMPTS: usize = 512;

/// How many nonces a server remembers.
pub const MAX_REMEMBERED_NONCES: usize = 65_536;

/// Transport protocol of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// One connection, one line each way.
    Tcp,
    /// One datagram each way.
    Udp,
}

impl Protocol {
    /// The name used in identifiers, `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an attempt goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Straight to an address.
    Ip(IpAddr),
    /// To whatever the pod's own resolver makes of a name.
    Name(String),
}

/// One thing to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The caller's name for it, repeated in the result.
    pub id: String,
    /// Sent as the payload, and expected back.
    pub nonce: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address or name.
    pub target: Target,
    /// Destination port.
    pub port: u16,
}

/// What an agent can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Request {
    /// Try all of these at once.
    Batch {
        /// Repeated in every response to this request.
        batch: String,
        /// Time for each attempt, without name resolution.
        timeout_ms: u64,
        /// What to try.
        attempts: Vec<Attempt>,
    },
    /// Which of these nonces has the server in this pod received?
    Received {
        /// Repeated in the response.
        batch: String,
        /// The nonces to look up.
        nonces: Vec<String>,
    },
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Response {
    /// First line of a session: the agent runs, and in this pod.
    Ready {
        /// `namespace/name` from the downward API.
        pod: String,
        /// Version of the probe.
        version: String,
    },
    /// The result of one attempt.
    Attempt {
        /// The batch it belongs to.
        batch: String,
        /// What happened.
        #[serde(flatten)]
        result: AttemptResult,
    },
    /// Every attempt of the batch has been reported.
    Done {
        /// The batch that is complete.
        batch: String,
    },
    /// Those of the nonces that arrived at this pod's server.
    Received {
        /// The request's batch.
        batch: String,
        /// The nonces that arrived, in the order of the question.
        nonces: Vec<String>,
    },
    /// The request could not be served at all.
    Failed {
        /// The request's batch, unless the line could not be read.
        batch: Option<String>,
        /// Why.
        cause: String,
    },
}

/// What happened to one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptResult {
    /// The attempt's own id.
    pub attempt: String,
    /// The attempt's nonce.
    pub nonce: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether a TCP handshake was completed: then packets went through both ways, whatever came after.
    pub connected: bool,
    /// Source address and port, known even when nothing came back.
    pub source: Option<SocketAddr>,
    /// Address and port that were really dialled.
    pub destination: Option<SocketAddr>,
    /// Time taken, without name resolution.
    pub elapsed_us: u64,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The right nonce came back.
    Answered {
        /// `namespace/name` of the pod that answered.
        by: String,
    },
    /// Something came back, but not the nonce.
    WrongAnswer {
        /// The beginning of what came back.
        got: String,
    },
    /// A TCP reset or an ICMP "port unreachable".
    Refused,
    /// The network said no in another way.
    Unreachable {
        /// The name of the error number, for example `EHOSTUNREACH`.
        errno: String,
    },
    /// Nothing came back in time.
    TimedOut,
    /// The name could not be resolved, so nothing was sent.
    DnsFailed {
        /// What the resolver said.
        cause: String,
    },
    /// The attempt could not be made, for a reason inside the pod.
    LocalError {
        /// What went wrong.
        cause: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answered { by } => write!(f, "answered by {by}"),
            Outcome::WrongAnswer { got } => write!(f, "wrong answer {got:?}"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Unreachable { errno } => write!(f, "unreachable ({errno})"),
            Outcome::TimedOut => f.write_str("timed out"),
            Outcome::DnsFailed { cause } => write!(f, "name not resolved ({cause})"),
            Outcome::LocalError { cause } => write!(f, "not tried ({cause})"),
        }
    }
}

/// What a server sends back for a nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `namespace/name` of the answering pod.
    pub pod: String,
    /// The nonce as it arrived.
    pub nonce: String,
}
