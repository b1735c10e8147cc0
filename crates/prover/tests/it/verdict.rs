//! The judge, case by case.

use std::collections::BTreeMap;

use probe::Outcome;
use prover::evidence::{FiveTuple, FlowReport};
use prover::model::PodRef;
use prover::table::Expected;
use prover::trial::{Pass, Trial};
use prover::verdict::{Verdict, judge};

use crate::perfect::{CONTROL, DENIED, audit, event, event_of, leak, observation, trial};

#[track_caller]
fn check(expected: Verdict, cause: &str, spoil: impl FnOnce(&mut Trial)) {
    let mut trial = trial();
    spoil(&mut trial);
    let judgement = judge(&trial);
    assert!(
        judgement.verdict == expected && judgement.cause.contains(cause),
        "expected {expected} with {cause:?}, got {}: {}",
        judgement.verdict,
        judgement.cause
    );
}

fn pod(name: &str) -> PodRef {
    PodRef::new("x", name)
}

fn lifted(trial: &mut Trial) -> &mut Pass {
    trial.lifted.as_mut().unwrap()
}

fn restored(trial: &mut Trial) -> &mut Pass {
    trial.restored.as_mut().unwrap()
}

fn denied_cells(trial: &Trial) -> Vec<String> {
    let denied = trial
        .cells
        .iter()
        .filter(|cell| cell.expected == Expected::Denied);
    denied.map(|cell| cell.id.0.clone()).collect()
}

#[test]
fn a_perfect_trial_is_enforcing() {
    let trial = trial();
    let judgement = judge(&trial);
    assert_eq!(judgement.verdict, Verdict::Enforcing, "{}", judgement.cause);
    assert_eq!(judgement.evidence.len(), denied_cells(&trial).len());
    insta::assert_snapshot!(judgement.cause, @"4 forbidden attempts were stopped, each with its own drop event, 16 allowed ones were answered, and the forbidden ones went through as long as the policies were away");
}

#[test]
fn audit_everywhere_is_watching() {
    check(
        Verdict::Watching,
        "4 of 4 forbidden attempts went through with the policies and the control only",
        |trial| {
            for cell in denied_cells(trial) {
                leak(&mut trial.enforced, &cell, Some(audit()));
            }
            (trial.lifted, trial.restored) = (None, None);
        },
    );
}

#[test]
fn audit_in_one_place_is_watching() {
    check(Verdict::Watching, "1 of 4", |trial| {
        leak(&mut trial.enforced, DENIED, Some(audit()));
    });
}

#[test]
fn audit_and_something_undecided_is_unknown() {
    check(Verdict::Unknown, "is not decided", |trial| {
        leak(&mut trial.enforced, DENIED, Some(audit()));
        let other = event_of(&trial.enforced, "x/b>x/c:80/udp@ip");
        trial.enforced.events.remove(other);
    });
}

#[test]
fn one_silent_leak_among_drops_is_dead() {
    check(Verdict::Dead, DENIED, |trial| {
        leak(&mut trial.enforced, DENIED, None);
    });
}

#[test]
fn one_silent_leak_among_audits_is_dead() {
    check(Verdict::Dead, "1 of 4", |trial| {
        for cell in denied_cells(trial) {
            leak(&mut trial.enforced, &cell, (cell != DENIED).then(audit));
        }
    });
}

#[test]
fn an_allow_verdict_is_no_report() {
    check(Verdict::Dead, "nothing was reported", |trial| {
        let report = FlowReport::Verdict {
            action: prover::evidence::Action::Allow,
            direction: "ingress".to_owned(),
        };
        leak(&mut trial.enforced, DENIED, Some(report));
    });
}

#[test]
fn a_datagram_that_arrives_is_a_leak_even_if_the_answer_does_not() {
    check(Verdict::Dead, "x/b>x/c:80/udp@ip", |trial| {
        let cell = "x/b>x/c:80/udp@ip";
        let event = event_of(&trial.enforced, cell);
        trial.enforced.events.remove(event);
        observation(&mut trial.enforced, cell).received = Some(true);
    });
}

#[test]
fn a_leak_after_the_policies_came_back_is_dead() {
    check(Verdict::Dead, "after the policies were put back", |trial| {
        leak(restored(trial), DENIED, None);
    });
}

#[test]
fn a_leak_with_lost_events_is_not_called_dead() {
    check(Verdict::Unknown, "the control lost 3 events", |trial| {
        leak(&mut trial.enforced, DENIED, None);
        trial.enforced.lost_events = 3;
    });
}

#[test]
fn a_leak_with_a_drop_of_the_same_packet_is_a_contradiction() {
    check(
        Verdict::Unknown,
        "and yet the control reported a drop",
        |trial| {
            let reason = "Policy denied".to_owned();
            leak(
                &mut trial.enforced,
                DENIED,
                Some(FlowReport::Dropped { reason }),
            );
        },
    );
}

#[test]
fn a_timeout_without_a_drop_event_proves_nothing() {
    check(
        Verdict::Unknown,
        "timed out without a drop event",
        |trial| {
            let event = event_of(&trial.enforced, DENIED);
            trial.enforced.events.remove(event);
        },
    );
}

#[test]
fn a_drop_for_another_reason_proves_nothing() {
    // The last is the work of a deny rule, which a Kubernetes network policy cannot have.
    for reason in ["Stale or unroutable IP", "Policy denied by denylist"] {
        let cause = format!("the control reported a drop ({reason}) instead of a policy drop");
        check(Verdict::Unknown, &cause, |trial| {
            let event = event_of(&trial.enforced, DENIED);
            let reason = reason.to_owned();
            trial.enforced.events[event].report = FlowReport::Dropped { reason };
        });
    }
}

#[test]
fn a_drop_of_another_packet_proves_nothing() {
    for change in 0..3 {
        check(
            Verdict::Unknown,
            "timed out without a drop event",
            |trial| {
                let event = event_of(&trial.enforced, DENIED);
                let tuple = &mut trial.enforced.events[event].tuple;
                match change {
                    0 => tuple.source.set_port(9),
                    1 => tuple.destination.set_port(9),
                    _ => tuple.protocol = probe::Protocol::Udp,
                }
            },
        );
    }
}

#[test]
fn a_drop_of_an_earlier_pass_does_not_count() {
    check(
        Verdict::Unknown,
        "after the policies were put back",
        |trial| {
            let event = event_of(restored(trial), DENIED);
            let event = restored(trial).events.remove(event);
            trial.enforced.events.push(event);
        },
    );
}

#[test]
fn two_attempts_cannot_share_a_drop() {
    check(Verdict::Unknown, "used the same source port", |trial| {
        let source = observation(&mut trial.enforced, DENIED).source;
        observation(&mut trial.enforced, "x/b>x/c:80/tcp@svc/c:8080").source = source;
    });
}

#[test]
fn a_service_drop_may_be_seen_before_or_after_translation() {
    check(Verdict::Enforcing, "", |trial| {
        let cell = "x/b>x/c:80/tcp@svc/c:8080";
        let event = event_of(&trial.enforced, cell);
        let dialled = observation(&mut trial.enforced, cell).destination.unwrap();
        trial.enforced.events[event].tuple.destination = dialled;
    });
}

#[test]
fn a_prohibition_by_icmp_counts_with_its_drop_event_only() {
    let unreachable = || Outcome::Unreachable {
        errno: "EACCES".to_owned(),
    };
    check(Verdict::Enforcing, "", |trial| {
        observation(&mut trial.enforced, DENIED).outcome = unreachable();
    });
    check(
        Verdict::Unknown,
        "unreachable (EACCES) without a drop event",
        |trial| {
            observation(&mut trial.enforced, DENIED).outcome = unreachable();
            let event = event_of(&trial.enforced, DENIED);
            trial.enforced.events.remove(event);
        },
    );
}

#[test]
fn an_accepted_connection_is_not_stopped() {
    check(
        Verdict::Unknown,
        "was accepted and then fell silent",
        |trial| {
            observation(&mut trial.enforced, DENIED).connected = true;
        },
    );
}

#[test]
fn other_ends_of_a_forbidden_attempt_are_unknown() {
    let outcomes = [
        (Outcome::Refused, "refused"),
        (
            Outcome::WrongAnswer {
                got: "HTTP".to_owned(),
            },
            "wrong answer",
        ),
        (
            Outcome::Answered {
                by: "x/a".to_owned(),
            },
            "another pod",
        ),
        (
            Outcome::DnsFailed {
                cause: "SERVFAIL".to_owned(),
            },
            "SERVFAIL",
        ),
        (
            Outcome::LocalError {
                cause: "EMFILE".to_owned(),
            },
            "EMFILE",
        ),
    ];
    for (outcome, cause) in outcomes {
        check(Verdict::Unknown, cause, |trial| {
            observation(&mut trial.enforced, DENIED).outcome = outcome;
        });
    }
}

#[test]
fn a_failed_positive_control_is_unknown() {
    let outcomes = [
        Outcome::TimedOut,
        Outcome::Refused,
        Outcome::Answered {
            by: "x/b".to_owned(),
        },
        Outcome::WrongAnswer { got: String::new() },
    ];
    for outcome in outcomes {
        check(Verdict::Unknown, "the positive control failed", |trial| {
            observation(&mut trial.enforced, CONTROL).outcome = outcome;
        });
    }
    check(Verdict::Unknown, "says that it got nothing", |trial| {
        observation(&mut trial.enforced, CONTROL).received = Some(false);
    });
    check(Verdict::Unknown, "could not be asked", |trial| {
        observation(&mut trial.enforced, CONTROL).received = None;
    });
}

#[test]
fn without_a_positive_control_it_is_unknown() {
    check(
        Verdict::Unknown,
        "no positive control for x/a>x/c:80/tcp@ip",
        |trial| {
            // The control becomes forbidden too, and is stopped like the others.
            let control = trial
                .cells
                .iter_mut()
                .find(|cell| cell.id.0 == CONTROL)
                .unwrap();
            control.expected = Expected::Denied;
            let protocol = control.protocol;
            let observation = observation(&mut trial.enforced, CONTROL);
            observation.outcome = Outcome::TimedOut;
            (observation.connected, observation.received) = (false, Some(false));
            let tuple = FiveTuple {
                protocol,
                source: observation.source.unwrap(),
                destination: observation.destination.unwrap(),
            };
            let reason = "Policy denied".to_owned();
            trial
                .enforced
                .events
                .push(event(tuple, FlowReport::Dropped { reason }));
        },
    );
}

#[test]
fn loopback_is_no_positive_control() {
    let trial = trial();
    let find = |id: &str| trial.cells.iter().find(|cell| cell.id.0 == id).unwrap();
    assert!(find(CONTROL).is_control_of(find(DENIED)));
    assert!(!find("x/c>x/c:80/tcp@ip").is_control_of(find(DENIED)));
}

#[test]
fn policies_that_forbid_nothing_are_unknown() {
    check(Verdict::Unknown, "forbid nothing", |trial| {
        for cell in &mut trial.cells {
            cell.expected = Expected::Allowed;
        }
    });
}

#[test]
fn a_deaf_channel_is_unknown_and_names_the_node() {
    check(
        Verdict::Unknown,
        "node node could not be heard: no Cilium agent runs there",
        |trial| {
            trial.channels[0].down = Some("no Cilium agent runs there".to_owned());
            // Even with leaks: nobody can say that nothing was reported.
            leak(&mut trial.enforced, DENIED, None);
        },
    );
    check(
        Verdict::Unknown,
        "node node, where x/a runs, were not listened to",
        |trial| {
            trial.channels.clear();
        },
    );
}

#[test]
fn endpoints_must_enforce() {
    check(Verdict::Unknown, "x/c is in audit mode", |trial| {
        trial.enforced.endpoints.get_mut(&pod("c")).unwrap().audit = true;
    });
    check(
        Verdict::Unknown,
        "x/c still waits for the identity",
        |trial| {
            let endpoint = trial.enforced.endpoints.get_mut(&pod("c")).unwrap();
            endpoint.state = "waiting-for-identity".to_owned();
        },
    );
    check(Verdict::Unknown, "x/c does not enforce ingress", |trial| {
        restored(trial)
            .endpoints
            .get_mut(&pod("c"))
            .unwrap()
            .ingress = false;
    });
    check(Verdict::Unknown, "x/a does not enforce egress", |trial| {
        trial.enforced.endpoints.get_mut(&pod("a")).unwrap().egress = false;
    });
    check(
        Verdict::Unknown,
        "does not manage an endpoint for x/c",
        |trial| {
            trial.enforced.endpoints.remove(&pod("c"));
        },
    );
}

#[test]
fn a_mutation_that_does_not_turn_is_unknown() {
    check(
        Verdict::Unknown,
        "the mutation did not turn: without the policies, x/b>x/c:80/tcp@ip",
        |trial| {
            observation(lifted(trial), DENIED).outcome = Outcome::TimedOut;
        },
    );
    check(Verdict::Unknown, "never taken away", |trial| {
        trial.lifted = None;
    });
    check(Verdict::Unknown, "never put back", |trial| {
        trial.restored = None;
    });
}

#[test]
fn other_pods_are_unknown() {
    check(
        Verdict::Unknown,
        "pod x/a was restarted without the policies: 1 restarts instead of 0",
        |trial| {
            lifted(trial).pods.get_mut(&pod("a")).unwrap().restarts = 1;
        },
    );
    check(
        Verdict::Unknown,
        "pod x/b was replaced after the policies were put back: another one of that name has 10.0.0.11",
        |trial| {
            restored(trial).pods.get_mut(&pod("b")).unwrap().uid = "new".to_owned();
        },
    );
    check(
        Verdict::Unknown,
        "pod x/a was gone without the policies",
        |trial| {
            lifted(trial).pods.remove(&pod("a"));
        },
    );
    check(
        Verdict::Unknown,
        "pod x/a was gone with the policies",
        |trial| {
            trial.enforced.pods.remove(&pod("a"));
        },
    );
}

#[test]
fn a_lost_session_is_unknown() {
    check(
        Verdict::Unknown,
        "the probe session in x/b was lost with the policies: it ended",
        |trial| {
            trial.enforced.lost_sessions = BTreeMap::from([(pod("b"), "it ended".to_owned())]);
        },
    );
    check(
        Verdict::Unknown,
        "19 of 20 attempts were reported with the policies",
        |trial| {
            trial.enforced.observations.pop();
        },
    );
}

#[test]
fn promises_are_kept_by_what_is_at_least_as_strong() {
    use Verdict::{Dead, Enforcing, Unknown, Watching};
    let kept = |found: Verdict, promised| found.keeps(promised);
    assert!(kept(Enforcing, Enforcing) && kept(Enforcing, Watching) && kept(Watching, Watching));
    assert!(!kept(Watching, Enforcing) && !kept(Dead, Watching) && !kept(Dead, Enforcing));
    for promised in [Enforcing, Watching, Dead, Unknown] {
        assert!(!kept(Unknown, promised));
    }
}
