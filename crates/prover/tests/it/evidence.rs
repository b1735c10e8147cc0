//! Cilium's words. The forms are those of its 1.19 sources (pkg/monitor) and documentation.

use jiff::Timestamp;
use prover::evidence::cilium::{MonitorLine, parse_endpoints, parse_monitor_line};
use prover::evidence::{Action, FlowEvent, FlowReport};
use prover::model::{PodRef, Protocol};

fn flow(line: &str) -> FlowEvent {
    match parse_monitor_line(line, Timestamp::UNIX_EPOCH) {
        MonitorLine::Flow(event) => event,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_json_drop_has_the_whole_tuple() {
    let event = flow(
        r#"{"cpu":"CPU 01:","type":"drop","mark":"0x8d2ab1b8","reason":"Policy denied","source":311,"bytes":74,"srcLabel":4711,"dstLabel":4712,"dstID":93,"Line":2217,"File":1,"ExtError":0,"Ifindex":12,"summary":{"ethernet":"{Contents=[..14..]}","ipv4":"{..}","tcp":"{SrcPort=12001 DstPort=80(http) SYN=true}","l2":{"src":"aa:bb:cc:dd:ee:ff","dst":"11:22:33:44:55:66"},"l3":{"src":"10.0.0.5","dst":"10.0.0.6"},"l4":{"src":"12001","dst":"80"}}}"#,
    );
    assert!(event.report.is_policy_drop());
    assert_eq!(event.tuple.protocol, Protocol::Tcp);
    assert_eq!(event.tuple.source.to_string(), "10.0.0.5:12001");
    assert_eq!(event.tuple.destination.to_string(), "10.0.0.6:80");
    assert_eq!(
        (event.source_identity, event.destination_identity),
        (Some(4711), Some(4712))
    );
    assert_eq!(event.endpoint, Some(93));
}

#[test]
fn a_udp_drop_over_ipv6_and_another_reason() {
    let event = flow(
        r#"{"type":"drop","reason":"CT: Map insertion failed","source":311,"srcLabel":1,"dstLabel":2,"dstID":0,"summary":{"udp":"{}","ipv6":"{}","l3":{"src":"fd00::5","dst":"fd00::6"},"l4":{"src":"12001","dst":"80"}}}"#,
    );
    assert!(!event.report.is_policy_drop(), "dropped, but not by policy");
    assert_eq!(event.tuple.protocol, Protocol::Udp);
    assert_eq!(event.tuple.destination.to_string(), "[fd00::6]:80");
    assert_eq!(event.endpoint, Some(311));
}

#[test]
fn verdicts_are_text_also_with_json() {
    let cases = [
        ("allow", Action::Allow),
        ("deny", Action::Deny),
        ("audit", Action::Audit),
        ("redirect", Action::Redirect),
    ];
    for (word, action) in cases {
        let event = flow(&format!(
            "Policy verdict log: flow 0x614e9723 local EP ID 93, remote ID 4711, proto 6, ingress, action {word}, \
             auth: disabled, match none, 10.0.0.5:12001 -> 10.0.0.6:80 tcp SYN, ACK"
        ));
        let direction = "ingress".to_owned();
        assert_eq!(event.report, FlowReport::Verdict { action, direction });
        assert_eq!(event.report.is_audit(), action == Action::Audit);
        assert_eq!(event.tuple.source.to_string(), "10.0.0.5:12001");
        assert_eq!(event.tuple.destination.to_string(), "10.0.0.6:80");
        assert_eq!(
            (event.source_identity, event.endpoint),
            (Some(4711), Some(93))
        );
    }
}

#[test]
fn an_older_verdict_and_a_drop_as_text() {
    let event = flow(
        "Policy verdict log: flow 0x0 local EP ID 1687, remote ID 2, proto 17, egress, action audit, match none, \
         [fd00::5]:4 -> [fd00::6]:53 udp",
    );
    assert_eq!(
        (event.tuple.protocol, event.destination_identity),
        (Protocol::Udp, Some(2))
    );
    let event = flow(
        "xx drop (Policy denied) flow 0x1f to endpoint 93, ifindex 12, file bpf_lxc.c:2217, , identity 4711->4712: \
         10.0.0.5:12001 -> 10.0.0.6:80 tcp SYN",
    );
    assert!(event.report.is_policy_drop());
    assert_eq!(event.source_identity, Some(4711));
    assert_eq!(event.destination_identity, Some(4712));
    assert_eq!(event.endpoint, Some(93));
}

#[test]
fn everything_else_is_no_flow() {
    let others = [
        "",
        "{",
        "{}",
        r#"{"type":"trace","summary":{}}"#,
        r#"{"type":"drop","reason":"Policy denied","source":1,"srcLabel":1,"dstLabel":2,"dstID":0}"#,
        r#"{"type":"drop","reason":"Policy denied","source":1,"srcLabel":1,"dstLabel":2,"dstID":0,"summary":{"icmpv4":"{}","l3":{"src":"10.0.0.5","dst":"10.0.0.6"}}}"#,
        "Policy verdict log: flow 0x0 local EP ID 1, remote ID 6, proto 1, ingress, action allow, match L3-Only, 10.0.0.1 -> 10.0.0.2 EchoRequest",
        "xx drop (Policy denied) flow 0x0 to endpoint 1, ifindex 1, file a.c:1, , identity 1->2: [unknown]",
        "Policy verdict log: , ",
        "xx drop (",
        "level=warn msg=\"connection closed\"",
    ];
    for line in others {
        assert_eq!(
            parse_monitor_line(line, Timestamp::UNIX_EPOCH),
            MonitorLine::Other,
            "{line}"
        );
    }
    let lost = parse_monitor_line("CPU 03: Lost 17 events", Timestamp::UNIX_EPOCH);
    assert_eq!(lost, MonitorLine::Lost(17));
}

proptest::proptest! {
    #[test]
    fn no_line_makes_the_parser_panic(line in "(Policy verdict log: |xx drop \\(|CPU |\\{)?.*") {
        parse_monitor_line(&line, Timestamp::UNIX_EPOCH);
    }
}

#[test]
fn endpoints_tell_their_mode() {
    let endpoint = |id: u32, pod: &str, mode: &str, audit: &str| {
        format!(
            r#"{{"id":{id},"spec":{{"options":{{"PolicyAuditMode":"{audit}"}}}},"status":{{
                "external-identifiers":{{"k8s-namespace":"hf-x","k8s-pod-name":"{pod}","pod-name":"hf-x/{pod}"}},
                "identity":{{"id":4711,"labels":["k8s:pod=a"]}},
                "policy":{{"realized":{{"policy-enabled":"{mode}","policy-revision":7}}}},
                "realized":{{"options":{{"PolicyAuditMode":"{audit}"}}}},"state":"ready"}}}}"#
        )
    };
    let host =
        r#"{"id":1,"status":{"external-identifiers":{},"identity":{"id":1},"state":"ready"}}"#;
    let json = format!(
        "[{host},{},{},{},{}]",
        endpoint(2, "a", "ingress", "Disabled"),
        endpoint(3, "b", "audit-both", "Enabled"),
        endpoint(4, "c", "none", "Disabled"),
        endpoint(5, "d", "both", "Enabled"),
    );
    let endpoints = parse_endpoints(&json).unwrap();
    let modes: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| &endpoints[&PodRef::new("hf-x", *name)])
        .map(|endpoint| {
            (
                endpoint.id,
                endpoint.ingress,
                endpoint.egress,
                endpoint.audit,
            )
        })
        .collect();
    assert_eq!(
        modes,
        [
            (2, true, false, false),
            (3, true, true, true),
            (4, false, false, false),
            (5, true, true, true)
        ]
    );
    assert_eq!(endpoints.len(), 4, "the host endpoint is no pod");
    assert_eq!(endpoints[&PodRef::new("hf-x", "a")].revision, Some(7));
    assert!(parse_endpoints("Error: no agent").is_err());
}

#[test]
fn the_monitors_own_complaints_are_no_silence() {
    let lines = [
        r#"time=2026-11-23T16:08:45.4Z level=error msg="Cannot open monitor socket" subsys=cilium-dbg"#,
        r#"time=2026-11-23T16:08:45.4Z level=warn msg="connection closed" subsys=cilium-dbg error=EOF"#,
    ];
    let complaints = lines.map(
        |line| match parse_monitor_line(line, Timestamp::UNIX_EPOCH) {
            MonitorLine::Complaint(complaint) => complaint,
            other => panic!("{other:?}"),
        },
    );
    assert_eq!(
        complaints,
        [
            r#""Cannot open monitor socket" subsys=cilium-dbg"#,
            r#""connection closed" subsys=cilium-dbg error=EOF"#
        ]
    );
    let note = r#"time=2026-11-23T16:08:45.4Z level=info msg="hello""#;
    assert_eq!(
        parse_monitor_line(note, Timestamp::UNIX_EPOCH),
        MonitorLine::Other
    );
}
