//! Sessions between a server and an agent of the same "pod".

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use probe::{Attempt, AttemptResult, Outcome, Protocol, Request, Response, Target};

const POD_NAMESPACE: &str = "tests";

fn probe(pod: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-probe"));
    command
        .env_clear()
        .env("POD_NAMESPACE", POD_NAMESPACE)
        .env("POD_NAME", pod);
    command
}

/// Kills the process when the test is over, also when it fails.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(pod: &str, tcp: u16, udp: u16) -> Running {
    let child = probe(pod)
        .args([
            "serve",
            "--tcp",
            &tcp.to_string(),
            "--udp",
            &udp.to_string(),
        ])
        .spawn()
        .unwrap();
    let running = Running(child);
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).is_err() {
        assert!(
            Instant::now() < deadline,
            "the server does not listen on {tcp}"
        );
        thread::sleep(Duration::from_millis(5));
    }
    running
}

struct Session {
    _process: Running,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    fn open(pod: &str) -> Session {
        let mut child = probe(pod)
            .arg("agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut session = Session {
            _process: Running(child),
            stdin,
            stdout,
        };
        let Response::Ready { pod: reported, .. } = session.read() else {
            panic!("the first line must be `ready`");
        };
        assert_eq!(reported, format!("{POD_NAMESPACE}/{pod}"));
        session
    }

    fn write(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    fn read(&mut self) -> Response {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn batch(&mut self, timeout_ms: u64, attempts: Vec<Attempt>) -> Vec<AttemptResult> {
        let request = Request::Batch {
            batch: "b1".to_owned(),
            timeout_ms,
            attempts,
        };
        self.write(&serde_json::to_string(&request).unwrap());
        let mut results = Vec::new();
        loop {
            match self.read() {
                Response::Attempt { batch, result } => {
                    assert_eq!(batch, "b1");
                    results.push(result);
                }
                Response::Done { batch } => {
                    assert_eq!(batch, "b1");
                    results.sort_by(|a, b| a.attempt.cmp(&b.attempt));
                    return results;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn one(&mut self, protocol: Protocol, target: Target, port: u16) -> AttemptResult {
        let mut results = self.batch(300, vec![attempt("only", protocol, target, port)]);
        assert_eq!(results.len(), 1);
        results.remove(0)
    }
}

fn attempt(id: &str, protocol: Protocol, target: Target, port: u16) -> Attempt {
    Attempt {
        id: id.to_owned(),
        nonce: format!("nonce-{id}"),
        protocol,
        target,
        port,
    }
}

fn loopback() -> Target {
    Target::Ip(Ipv4Addr::LOCALHOST.into())
}

/// Ports that were free a moment ago.
fn free_ports() -> (u16, u16) {
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (
        tcp.local_addr().unwrap().port(),
        udp.local_addr().unwrap().port(),
    )
}

#[test]
fn server_answers_with_its_name_and_remembers_what_arrived() {
    let (tcp, udp) = free_ports();
    let _server = serve("answers", tcp, udp);
    let mut session = Session::open("answers");

    let results = session.batch(
        2000,
        vec![
            attempt("1", Protocol::Tcp, loopback(), tcp),
            attempt("2", Protocol::Udp, loopback(), udp),
        ],
    );
    for (result, port) in results.iter().zip([tcp, udp]) {
        let by = "tests/answers".to_owned();
        assert_eq!(result.outcome, Outcome::Answered { by });
        assert_eq!(result.destination.unwrap().port(), port);
        let source = result.source.unwrap();
        assert!(source.ip().is_loopback());
        assert!((10_000..32_000).contains(&source.port()), "{source}");
    }
    assert!(results[0].connected && !results[1].connected);

    let request = Request::Received {
        batch: "b2".to_owned(),
        nonces: vec![
            "nonce-2".to_owned(),
            "never sent".to_owned(),
            "nonce-1".to_owned(),
        ],
    };
    session.write(&serde_json::to_string(&request).unwrap());
    assert_eq!(
        session.read(),
        Response::Received {
            batch: "b2".to_owned(),
            nonces: vec!["nonce-2".to_owned(), "nonce-1".to_owned()],
        }
    );
}

#[test]
fn a_whole_batch_comes_back_over_one_session() {
    let (tcp, udp) = free_ports();
    let _server = serve("batch", tcp, udp);
    let mut session = Session::open("batch");
    for _ in 0..2 {
        let attempts = (0..600)
            .map(|number| {
                let id = format!("{number:03}");
                match number % 2 {
                    0 => attempt(&id, Protocol::Tcp, loopback(), tcp),
                    _ => attempt(&id, Protocol::Udp, loopback(), udp),
                }
            })
            .collect();
        let results = session.batch(5000, attempts);
        assert_eq!(results.len(), 600);
        let mut sources: Vec<_> = results
            .iter()
            .map(|result| result.source.unwrap().port())
            .collect();
        sources.sort_unstable();
        sources.dedup();
        assert_eq!(sources.len(), 600, "no source port may be used twice");
        for result in results {
            assert!(
                matches!(result.outcome, Outcome::Answered { .. }),
                "{result:?}"
            );
        }
    }
}

#[test]
fn a_closed_port_is_refused() {
    let (tcp, udp) = free_ports();
    let mut session = Session::open("closed");
    for (protocol, port) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
        let result = session.one(protocol, loopback(), port);
        assert_eq!(result.outcome, Outcome::Refused, "{protocol}");
        assert!(result.source.is_some(), "{protocol}");
    }
}

#[test]
fn silence_times_out_and_the_source_is_still_known() {
    let silent_tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent_udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut session = Session::open("silence");

    let tcp = session.one(
        Protocol::Tcp,
        loopback(),
        silent_tcp.local_addr().unwrap().port(),
    );
    assert_eq!(tcp.outcome, Outcome::TimedOut);
    assert!(tcp.connected, "the handshake is the kernel's");
    assert!(tcp.elapsed_us >= 300_000);

    let udp = session.one(
        Protocol::Udp,
        loopback(),
        silent_udp.local_addr().unwrap().port(),
    );
    assert_eq!(udp.outcome, Outcome::TimedOut);
    let (_, sender) = silent_udp.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(udp.source, Some(sender));
}

#[test]
fn a_connect_that_times_out_still_names_its_source() {
    // A listener with a full queue drops further SYNs, which is as near to a policy as loopback gets.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let address: std::net::SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    socket.bind(&address.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _filler = std::net::TcpStream::connect(address).unwrap();

    let mut session = Session::open("full");
    let result = session.one(Protocol::Tcp, loopback(), address.port());
    assert_eq!(result.outcome, Outcome::TimedOut);
    assert!(!result.connected);
    let source = result.source.unwrap();
    assert!(
        source.ip().is_loopback() && source.port() >= 10_000,
        "{source}"
    );
}

#[test]
fn another_service_gives_a_wrong_answer() {
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = other.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
    });
    let result = Session::open("wrong").one(Protocol::Tcp, loopback(), port);
    server.join().unwrap();
    let got = "HTTP/1.1 400 Bad Request\r\n".to_owned();
    assert_eq!(result.outcome, Outcome::WrongAnswer { got });
}

#[test]
fn a_name_that_is_no_name_is_a_dns_failure() {
    let result =
        Session::open("dns").one(Protocol::Tcp, Target::Name("not..a..name".to_owned()), 80);
    assert!(
        matches!(result.outcome, Outcome::DnsFailed { .. }),
        "{result:?}"
    );
    assert_eq!((result.source, result.destination), (None, None));
}

#[test]
fn received_without_a_server_is_said_to_have_failed() {
    let mut session = Session::open("no-server");
    session.write(r#"{"kind":"received","batch":"b","nonces":["n"]}"#);
    let Response::Failed { batch, cause } = session.read() else {
        panic!("nobody can know what arrived");
    };
    assert_eq!(batch.as_deref(), Some("b"));
    assert!(
        cause.starts_with("the server of this pod does not tell"),
        "{cause}"
    );
}

#[test]
fn a_line_that_is_no_request_does_not_end_the_session() {
    let (tcp, _) = free_ports();
    let mut session = Session::open("garbage");
    session.write("garbage");
    assert!(matches!(
        session.read(),
        Response::Failed { batch: None, .. }
    ));
    assert_eq!(
        session.one(Protocol::Tcp, loopback(), tcp).outcome,
        Outcome::Refused
    );
}

#[test]
fn pause_and_serve_end_with_sigterm() {
    let (tcp, udp) = free_ports();
    let pause = Running(probe("pause").arg("pause").spawn().unwrap());
    let server = serve("sigterm", tcp, udp);
    // The server answers already; the sandbox has had as long to install its handlers.
    thread::sleep(Duration::from_millis(200));
    for mut running in [pause, server] {
        let pid = nix::unistd::Pid::from_raw(running.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(running.0.wait().unwrap().success());
    }
}

#[test]
fn wrong_arguments_are_explained() {
    for arguments in [
        &["serve"][..],
        &["serve", "80"],
        &["serve", "--tcp", "x"],
        &["dance"],
        &[],
    ] {
        let output = probe("usage").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage:"));
    }
}
