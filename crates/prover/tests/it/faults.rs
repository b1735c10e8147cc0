//! A search for any single fault in a perfect trial that the judge would let pass as ENFORCING.

use probe::Outcome;
use proptest::prelude::*;
use proptest::sample::Index;
use prover::evidence::FlowReport;
use prover::model::PodRef;
use prover::policies::Standing;
use prover::table::Expected;
use prover::trial::{Pass, Trial};
use prover::verdict::{Verdict, judge};

use crate::perfect::{audit, trial};

fn pass_mut(trial: &mut Trial, number: usize) -> &mut Pass {
    match number {
        0 => &mut trial.enforced,
        1 => trial.lifted.as_mut().unwrap(),
        _ => trial.restored.as_mut().unwrap(),
    }
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        prop_oneof![Just("x/a"), Just("x/b"), Just("x/c")]
            .prop_map(|by| Outcome::Answered { by: by.to_owned() }),
        Just(Outcome::WrongAnswer {
            got: "?".to_owned()
        }),
        Just(Outcome::Refused),
        Just(Outcome::TimedOut),
        Just(Outcome::DnsFailed {
            cause: "NXDOMAIN".to_owned()
        }),
        Just(Outcome::LocalError {
            cause: "EMFILE".to_owned()
        }),
    ]
}

#[derive(Debug, Clone)]
enum Fault {
    Outcome(Outcome),
    NotReceived(Option<bool>),
    Received,
    Gone,
    Duplicate,
    SourcePort(u16),
    NoSource,
    EventGone,
    EventReason,
    EventAudit,
    EventPort(u16),
    EventProtocol,
    PodUid,
    PodRestart,
    PodGone,
    PodLabels,
    PolicyGone,
    PolicyUid,
    PolicyStranger,
    SessionLost,
    ChannelDown,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        outcome().prop_map(Fault::Outcome),
        prop_oneof![Just(None), Just(Some(false))].prop_map(Fault::NotReceived),
        Just(Fault::Received),
        Just(Fault::Gone),
        Just(Fault::Duplicate),
        (1u16..9000).prop_map(Fault::SourcePort),
        Just(Fault::NoSource),
        Just(Fault::EventGone),
        Just(Fault::EventReason),
        Just(Fault::EventAudit),
        (1u16..9000).prop_map(Fault::EventPort),
        Just(Fault::EventProtocol),
        Just(Fault::PodUid),
        Just(Fault::PodRestart),
        Just(Fault::PodGone),
        Just(Fault::PodLabels),
        Just(Fault::PolicyGone),
        Just(Fault::PolicyUid),
        Just(Fault::PolicyStranger),
        Just(Fault::SessionLost),
        Just(Fault::ChannelDown),
    ]
}

/// Spoils one thing. `false`: the fault does not apply there, or changes nothing that matters.
fn spoil(trial: &mut Trial, fault: Fault, pass_number: usize, place: Index) -> bool {
    if let Fault::ChannelDown = fault {
        trial.channels[0].down = Some("ended".to_owned());
        return true;
    }
    let cells = trial.cells.clone();
    let mut stranger = trial.enforced.policies_after[0].clone();
    stranger.standing = Standing::Foreign(PodRef::new("x", "c"));
    let in_force = pass_number != 1;
    let pass = pass_mut(trial, pass_number);
    let number = place.index(pass.observations.len());
    let stopped = in_force && cells[number].expected == Expected::Denied;
    let some_pod = pass
        .pods
        .keys()
        .nth(place.index(pass.pods.len()))
        .cloned()
        .unwrap();
    let observation = &mut pass.observations[number];
    match fault {
        Fault::Outcome(outcome) if outcome == observation.outcome => return false,
        Fault::Outcome(outcome) => observation.outcome = outcome,
        // A denied attempt that did not arrive is as it should be, and where an allowed one came from is no matter.
        Fault::NotReceived(Some(false)) if stopped => return false,
        Fault::Received | Fault::SourcePort(_) | Fault::NoSource if !stopped => return false,
        Fault::NotReceived(received) => observation.received = received,
        Fault::Received => observation.received = Some(true),
        Fault::Gone => {
            pass.observations.remove(number);
        }
        Fault::Duplicate => {
            let copy = observation.clone();
            pass.observations.push(copy);
        }
        Fault::SourcePort(port) => observation.source.as_mut().unwrap().set_port(port),
        Fault::NoSource => observation.source = None,
        Fault::EventGone
        | Fault::EventReason
        | Fault::EventAudit
        | Fault::EventPort(_)
        | Fault::EventProtocol => {
            if pass.events.is_empty() {
                return false;
            }
            let number = place.index(pass.events.len());
            let event = &mut pass.events[number];
            match fault {
                Fault::EventReason => {
                    let reason = "Invalid packet".to_owned();
                    event.report = FlowReport::Dropped { reason };
                }
                Fault::EventAudit => event.report = audit(),
                Fault::EventPort(port) => event.tuple.source.set_port(port),
                Fault::EventProtocol => {
                    event.tuple.protocol = match event.tuple.protocol {
                        probe::Protocol::Tcp => probe::Protocol::Udp,
                        probe::Protocol::Udp => probe::Protocol::Tcp,
                    };
                }
                _ => {
                    pass.events.remove(number);
                }
            }
        }
        Fault::PodUid => pass.pods.get_mut(&some_pod).unwrap().uid.push('!'),
        Fault::PodRestart => pass.pods.get_mut(&some_pod).unwrap().restarts += 1,
        Fault::PodGone => {
            pass.pods.remove(&some_pod);
        }
        Fault::PodLabels => {
            let labels = &mut pass.pods.get_mut(&some_pod).unwrap().labels;
            labels.insert("new".to_owned(), "label".to_owned());
        }
        Fault::PolicyGone | Fault::PolicyUid if !in_force => return false,
        Fault::PolicyGone => {
            pass.policies_after.pop();
        }
        Fault::PolicyUid => pass.policies_before[0].uid.push('!'),
        Fault::PolicyStranger => pass.policies_before.push(stranger),
        Fault::SessionLost => {
            pass.lost_sessions.insert(some_pod, "ended".to_owned());
        }
        Fault::ChannelDown => return false,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, max_global_rejects: 40_000, ..ProptestConfig::default() })]

    #[test]
    fn no_single_fault_leaves_enforcing(fault in fault(), pass in 0usize..3, place in any::<Index>()) {
        let mut trial = trial();
        prop_assume!(spoil(&mut trial, fault, pass, place));
        let judgement = judge(&trial);
        prop_assert_ne!(judgement.verdict, Verdict::Enforcing);
    }
}

/// The same without chance: each observation of each pass, with each other outcome.
#[test]
fn every_single_changed_outcome_is_noticed() {
    let perfect = trial();
    let outcomes = [
        Outcome::Answered {
            by: "x/a".to_owned(),
        },
        Outcome::Answered {
            by: "x/b".to_owned(),
        },
        Outcome::Answered {
            by: "x/c".to_owned(),
        },
        Outcome::WrongAnswer {
            got: "?".to_owned(),
        },
        Outcome::Refused,
        Outcome::TimedOut,
        Outcome::DnsFailed {
            cause: "NXDOMAIN".to_owned(),
        },
        Outcome::LocalError {
            cause: "EMFILE".to_owned(),
        },
    ];
    for pass_number in 0..3 {
        for number in 0..perfect.cells.len() {
            for outcome in &outcomes {
                let mut trial = perfect.clone();
                let pass = pass_mut(&mut trial, pass_number);
                if pass.observations[number].outcome == *outcome {
                    continue;
                }
                pass.observations[number].outcome = outcome.clone();
                let judgement = judge(&trial);
                assert_ne!(
                    judgement.verdict,
                    Verdict::Enforcing,
                    "pass {pass_number}, {}: {outcome}",
                    perfect.cells[number].id
                );
            }
        }
    }
}
