//! The decision for one flow, with the policies that lead to it.

use serde::Serialize;

use super::{Labels, NetworkPolicy, Peer, Pod, PolicyPort, PortMatch, Protocol, Rule, World};

/// Which side of the flow a policy looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Into the destination.
    Ingress,
    /// Out of the source.
    Egress,
}

/// What the policies say about one flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Both sides must allow it.
    pub allowed: bool,
    /// A pod always reaches itself: that traffic never leaves the pod.
    pub same_pod: bool,
    /// The destination's side.
    pub ingress: SideDecision,
    /// The source's side.
    pub egress: SideDecision,
}

/// What the policies say about one side of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SideDecision {
    /// The policies (`namespace/name`) that isolate the pod in this direction.
    pub isolated_by: Vec<String>,
    /// The rules that let the flow through all the same.
    pub allowed_by: Vec<Allowance>,
}

impl SideDecision {
    /// Not isolated, or let through by a rule.
    pub fn allowed(&self) -> bool {
        self.isolated_by.is_empty() || !self.allowed_by.is_empty()
    }
}

/// A rule that allows a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Allowance {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// Position of the rule in its list, from 0.
    pub rule: usize,
}

/// Decides whether `from` may reach `port` of `to`.
pub fn decide(world: &World, from: &Pod, to: &Pod, port: u16, protocol: Protocol) -> Decision {
    if from.reference == to.reference {
        return Decision {
            allowed: true,
            same_pod: true,
            ingress: SideDecision::default(),
            egress: SideDecision::default(),
        };
    }
    let flow = Flow {
        world,
        destination: to,
        port,
        protocol,
    };
    let ingress = flow.side(Direction::Ingress, to, from);
    let egress = flow.side(Direction::Egress, from, to);
    Decision {
        allowed: ingress.allowed() && egress.allowed(),
        same_pod: false,
        ingress,
        egress,
    }
}

struct Flow<'a> {
    world: &'a World,
    destination: &'a Pod,
    port: u16,
    protocol: Protocol,
}

impl Flow<'_> {
    fn side(&self, direction: Direction, subject: &Pod, peer: &Pod) -> SideDecision {
        let mut side = SideDecision::default();
        for policy in &self.world.policies {
            let rules = match direction {
                Direction::Ingress => policy.ingress.as_deref(),
                Direction::Egress => policy.egress.as_deref(),
            };
            let Some(rules) = rules else { continue };
            if policy.namespace != subject.reference.namespace
                || !policy.subject.matches(&subject.labels)
            {
                continue;
            }
            let name = format!("{}/{}", policy.namespace, policy.name);
            side.isolated_by.push(name.clone());
            let allowing = rules
                .iter()
                .enumerate()
                .filter(|(_, rule)| self.rule_allows(policy, rule, peer));
            side.allowed_by.extend(allowing.map(|(rule, _)| Allowance {
                policy: name.clone(),
                rule,
            }));
        }
        side
    }

    fn rule_allows(&self, policy: &NetworkPolicy, rule: &Rule, peer: &Pod) -> bool {
        let peer_matches = rule.peers.as_ref().is_none_or(|peers| {
            peers
                .iter()
                .any(|allowed| self.peer_matches(policy, allowed, peer))
        });
        let port_matches = rule
            .ports
            .as_ref()
            .is_none_or(|ports| ports.iter().any(|allowed| self.port_matches(allowed)));
        peer_matches && port_matches
    }

    fn peer_matches(&self, policy: &NetworkPolicy, allowed: &Peer, peer: &Pod) -> bool {
        match allowed {
            Peer::Pods { namespaces, pods } => {
                let in_namespace = match namespaces {
                    None => peer.reference.namespace == policy.namespace,
                    Some(selector) => {
                        selector.matches(&self.world.namespace_labels(&peer.reference.namespace))
                    }
                };
                in_namespace
                    && pods
                        .as_ref()
                        .is_none_or(|selector| selector.matches(&peer.labels))
            }
            Peer::Block { cidr, except } => peer.ip.is_some_and(|address| {
                cidr.contains(&address) && !except.iter().any(|range| range.contains(&address))
            }),
        }
    }

    fn port_matches(&self, allowed: &PolicyPort) -> bool {
        if allowed.protocol != Some(self.protocol) {
            return false;
        }
        match &allowed.ports {
            PortMatch::Any => true,
            PortMatch::Range(first, last) => (*first..=*last).contains(&self.port),
            // A name is the destination's in both directions.
            PortMatch::Named(name) => self.destination.ports.iter().any(|port| {
                port.name.as_ref() == Some(name)
                    && port.protocol == self.protocol
                    && port.number == self.port
            }),
        }
    }
}

impl World {
    /// Labels of a namespace, also of one that the manifests do not mention.
    pub(crate) fn namespace_labels(&self, name: &str) -> Labels {
        self.namespaces
            .iter()
            .find(|namespace| namespace.name == name)
            .map_or_else(
                || default_namespace_labels(name),
                |namespace| namespace.labels.clone(),
            )
    }
}

/// The label that the API server puts on every namespace.
pub(super) fn default_namespace_labels(name: &str) -> Labels {
    Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())])
}
