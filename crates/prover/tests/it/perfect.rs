//! A trial without a fault, to be spoilt in one place at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use probe::Outcome;
use prover::cluster::Scenario;
use prover::evidence::{Action, EndpointFact, FiveTuple, FlowEvent, FlowReport, Repository};
use prover::model::{Labels, PodRef};
use prover::policies::{NETWORK_POLICY, PolicyObject};
use prover::table::{self, Cell, CellId, Expected, Route, RouteKind};
use prover::trial::{Channel, Observation, Pass, PodFact, Trial};

const WORKLOAD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: x}
---
apiVersion: v1
kind: Pod
metadata: {namespace: x, name: a, labels: {pod: a}}
spec: {containers: [{ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: x, name: b, labels: {pod: b}}
spec: {containers: [{ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: x, name: c, labels: {pod: c}}
spec: {containers: [{ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: x, name: c}
spec: {selector: {pod: c}, ports: [{port: 8080, targetPort: 80}]}
";

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: c-from-a}
spec:
  podSelector: {matchLabels: {pod: c}}
  ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: a-not-to-b-by-udp}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
    - ports: [{protocol: TCP}]
    - to: [{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}}]
";

/// The cell that most tests spoil.
pub(crate) const DENIED: &str = "x/b>x/c:80/tcp@ip";
/// Its positive control.
pub(crate) const CONTROL: &str = "x/a>x/c:80/tcp@ip";

/// Everything as it must be for ENFORCING.
pub(crate) fn trial() -> Trial {
    let scenario = Scenario::parse(
        "small",
        ("workload.yaml", WORKLOAD),
        ("policies.yaml", POLICIES),
    )
    .unwrap();
    let cells = table::build(&scenario.world, &[RouteKind::Ip, RouteKind::Service]);
    let mut builder = Builder {
        pods: scenario
            .pods()
            .into_iter()
            .enumerate()
            .map(|(number, pod)| (pod, fact(number)))
            .collect(),
        cells,
        policies: policies(&scenario),
        port: 10_000,
    };
    let enforced = builder.pass(true);
    let lifted = builder.pass(false);
    let restored = builder.pass(true);
    Trial {
        cells: builder.cells,
        pods: builder.pods,
        policies: builder.policies.iter().map(reference).collect(),
        channels: vec![Channel {
            node: "node".to_owned(),
            agent: Some("kube-system/cilium-1".to_owned()),
            down: None,
        }],
        enforced,
        lifted: Some(lifted),
        restored: Some(restored),
    }
}

fn policies(scenario: &Scenario) -> Vec<PolicyObject> {
    let documents = scenario.policies.iter().zip(1..);
    let objects = documents.map(|(document, number)| {
        let mut object = document.clone();
        object["metadata"]["uid"] = format!("policy-{number}").into();
        object["metadata"]["generation"] = number.into();
        PolicyObject::weigh(&scenario.world, NETWORK_POLICY, &object).unwrap()
    });
    objects.collect()
}

fn reference(policy: &PolicyObject) -> PodRef {
    PodRef::new(policy.namespace.clone().unwrap(), &policy.name)
}

fn fact(number: usize) -> PodFact {
    PodFact {
        uid: format!("uid-{number}"),
        restarts: 0,
        ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10 + u8::try_from(number).unwrap())),
        node: "node".to_owned(),
        labels: Labels::new(),
    }
}

struct Builder {
    cells: Vec<Cell>,
    pods: BTreeMap<PodRef, PodFact>,
    policies: Vec<PolicyObject>,
    port: u16,
}

impl Builder {
    fn pass(&mut self, in_force: bool) -> Pass {
        let mut pass = Pass {
            started: Timestamp::UNIX_EPOCH + Duration::from_millis(1_250),
            duration_ms: 900,
            rounds: 2,
            pods: self.pods.clone(),
            ..Pass::default()
        };
        if in_force {
            pass.policies_before.clone_from(&self.policies);
            pass.policies_after.clone_from(&self.policies);
        }
        let repository = Repository {
            revision: 7,
            uids: BTreeSet::from(["policy-1".to_owned(), "policy-2".to_owned()]),
        };
        pass.repositories.insert("node".to_owned(), Ok(repository));
        for (number, pod) in self.pods.keys().enumerate() {
            let endpoint = EndpointFact {
                id: u32::try_from(number).unwrap(),
                identity: Some(4711),
                state: "ready".to_owned(),
                ingress: true,
                egress: true,
                audit: false,
                revision: Some(7),
            };
            pass.endpoints.insert(pod.clone(), endpoint);
        }
        for cell in &self.cells {
            self.port += 1;
            let source = SocketAddr::new(self.pods[&cell.from].ip, self.port);
            let backend = SocketAddr::new(self.pods[&cell.to].ip, cell.port);
            let destination = match &cell.route {
                Route::Ip => backend,
                Route::Service { port, .. } => {
                    SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).into(), *port)
                }
            };
            let stopped = in_force && cell.expected == Expected::Denied;
            let tuple = FiveTuple {
                protocol: cell.protocol,
                source,
                destination: backend,
            };
            if stopped {
                let reason = "Policy denied".to_owned();
                pass.events
                    .push(event(tuple, FlowReport::Dropped { reason }));
            }
            pass.observations.push(Observation {
                cell: cell.id.clone(),
                nonce: format!("hf-{}", self.port),
                outcome: if stopped {
                    Outcome::TimedOut
                } else {
                    Outcome::Answered {
                        by: cell.to.to_string(),
                    }
                },
                connected: !stopped,
                source: Some(source),
                destination: Some(destination),
                elapsed_us: 800,
                received: Some(!stopped),
                tries: 1,
            });
        }
        pass
    }
}

pub(crate) fn event(tuple: FiveTuple, report: FlowReport) -> FlowEvent {
    FlowEvent {
        tuple,
        report,
        source_identity: Some(1),
        destination_identity: Some(2),
        endpoint: Some(3),
        heard: Timestamp::UNIX_EPOCH,
    }
}

pub(crate) fn audit() -> FlowReport {
    FlowReport::Verdict {
        action: Action::Audit,
        direction: "ingress".to_owned(),
    }
}

pub(crate) fn observation<'a>(pass: &'a mut Pass, cell: &str) -> &'a mut Observation {
    let id = CellId(cell.to_owned());
    pass.observations
        .iter_mut()
        .find(|observation| observation.cell == id)
        .unwrap()
}

/// The event of a cell; every attempt has its own source.
pub(crate) fn event_of(pass: &Pass, cell: &str) -> usize {
    let id = CellId(cell.to_owned());
    let source = pass.observation(&id).unwrap().source.unwrap();
    pass.events
        .iter()
        .position(|event| event.tuple.source == source)
        .unwrap()
}

/// Lets a forbidden cell through, reported or not.
pub(crate) fn leak(pass: &mut Pass, cell: &str, report: Option<FlowReport>) {
    let event = event_of(pass, cell);
    match report {
        Some(report) => pass.events[event].report = report,
        None => {
            pass.events.remove(event);
        }
    }
    let by = cell.split(['>', ':']).nth(1).unwrap().to_owned();
    let observation = observation(pass, cell);
    observation.outcome = Outcome::Answered { by };
    observation.connected = true;
    observation.received = Some(true);
}
