//! The prober: whole batches from stdin, every attempt at once, one result a line on stdout.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use probe::{
    Answer, Attempt, AttemptResult, MAX_CONCURRENT_ATTEMPTS, Outcome, Protocol, Request, Response,
    Target,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::resolve::Resolver;
use crate::{identity, ledger};

const MAX_ANSWER: usize = 4096;

type Lines = mpsc::UnboundedSender<Response>;

/// Serves requests until stdin ends.
pub(crate) async fn run() -> io::Result<()> {
    let (lines, responses) = mpsc::unbounded_channel();
    let writer = tokio::spawn(write_lines(responses));
    send(
        &lines,
        Response::Ready {
            pod: identity::pod(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    );

    let agent = Arc::new(Agent {
        ports: SourcePorts::new(),
        resolver: Resolver::new(),
        slots: Arc::new(Semaphore::new(MAX_CONCURRENT_ATTEMPTS)),
    });
    let mut running = JoinSet::new();
    let mut requests = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = requests.next_line().await? {
        match serde_json::from_str(&line) {
            Ok(request) => {
                running.spawn(Arc::clone(&agent).serve(request, lines.clone()));
            }
            Err(error) => send(
                &lines,
                Response::Failed {
                    batch: None,
                    cause: format!("not a request: {error}"),
                },
            ),
        }
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
    drop(lines);
    writer.await?
}

/// A writer that is gone means that the session is over; stdin will end too.
fn send(lines: &Lines, response: Response) {
    let _ = lines.send(response);
}

async fn write_lines(mut responses: mpsc::UnboundedReceiver<Response>) -> io::Result<()> {
    let mut stdout = tokio::io::stdout();
    while let Some(response) = responses.recv().await {
        let mut bytes = serde_json::to_vec(&response)?;
        bytes.push(b'\n');
        // Whatever is waiting goes out in the same write.
        while let Ok(response) = responses.try_recv() {
            serde_json::to_writer(&mut bytes, &response)?;
            bytes.push(b'\n');
        }
        stdout.write_all(&bytes).await?;
        stdout.flush().await?;
    }
    Ok(())
}

struct Agent {
    ports: SourcePorts,
    resolver: Resolver,
    slots: Arc<Semaphore>,
}

impl Agent {
    async fn serve(self: Arc<Self>, request: Request, lines: Lines) {
        match request {
            Request::Batch {
                batch,
                timeout_ms,
                attempts,
            } => {
                let timeout = Duration::from_millis(timeout_ms);
                self.run_batch(&batch, timeout, attempts, &lines).await;
                send(&lines, Response::Done { batch });
            }
            Request::Received { batch, nonces } => {
                let response = match ledger::ask(&nonces).await {
                    Ok(nonces) => Response::Received { batch, nonces },
                    Err(error) => Response::Failed {
                        batch: Some(batch),
                        cause: format!(
                            "the server of this pod does not tell what arrived: {error}"
                        ),
                    },
                };
                send(&lines, response);
            }
        }
    }

    async fn run_batch(
        self: &Arc<Self>,
        batch: &str,
        timeout: Duration,
        attempts: Vec<Attempt>,
        lines: &Lines,
    ) {
        let addresses = Arc::new(self.resolve(&attempts).await);
        let mut running = JoinSet::new();
        for attempt in attempts {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                return;
            };
            let (agent, addresses) = (Arc::clone(self), Arc::clone(&addresses));
            let (batch, lines) = (batch.to_owned(), lines.clone());
            running.spawn(async move {
                let result = agent.attempt(attempt, &addresses, timeout).await;
                send(&lines, Response::Attempt { batch, result });
                drop(slot);
            });
        }
        while running.join_next().await.is_some() {}
    }

    /// Each name once for the whole batch.
    async fn resolve(
        self: &Arc<Self>,
        attempts: &[Attempt],
    ) -> HashMap<String, Result<IpAddr, String>> {
        let names: BTreeSet<&String> = attempts
            .iter()
            .filter_map(|attempt| match &attempt.target {
                Target::Name(name) => Some(name),
                Target::Ip(_) => None,
            })
            .collect();
        let mut lookups = JoinSet::new();
        for name in names {
            let (agent, name) = (Arc::clone(self), name.clone());
            lookups.spawn(async move {
                let address = agent.resolver.lookup(&name).await;
                (name, address)
            });
        }
        let mut addresses = HashMap::new();
        while let Some(finished) = lookups.join_next().await {
            addresses.extend(finished);
        }
        addresses
    }

    async fn attempt(
        &self,
        attempt: Attempt,
        addresses: &HashMap<String, Result<IpAddr, String>>,
        timeout: Duration,
    ) -> AttemptResult {
        let mut trace = Trace::default();
        let started = Instant::now();
        let address = match &attempt.target {
            Target::Ip(address) => Ok(*address),
            Target::Name(name) => addresses
                .get(name)
                .cloned()
                .unwrap_or_else(|| Err("the look-up was lost".to_owned())),
        };
        let outcome = match address {
            Err(cause) => Outcome::DnsFailed { cause },
            Ok(address) => {
                let destination = SocketAddr::new(address, attempt.port);
                trace.destination = Some(destination);
                let conversation = async {
                    match attempt.protocol {
                        Protocol::Tcp => self.tcp(&attempt.nonce, destination, &mut trace).await,
                        Protocol::Udp => self.udp(&attempt.nonce, destination, &mut trace).await,
                    }
                };
                timeout_at(started + timeout, conversation)
                    .await
                    .unwrap_or(Outcome::TimedOut)
            }
        };
        AttemptResult {
            attempt: attempt.id,
            nonce: attempt.nonce,
            outcome,
            connected: trace.connected,
            source: trace.source,
            destination: trace.destination,
            elapsed_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }

    async fn tcp(&self, nonce: &str, destination: SocketAddr, trace: &mut Trace) -> Outcome {
        let bound = self.ports.bind(|port| {
            let socket = if destination.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }?;
            socket.bind(SocketAddr::new(unspecified(destination), port))?;
            Ok((socket, port))
        });
        let (socket, port) = match bound {
            Ok(bound) => bound,
            Err(error) => return local_error("open a socket", &error),
        };
        // A connect that times out takes its socket along, so the source address is found out before.
        trace.source = local_address(destination).map(|address| SocketAddr::new(address, port));
        let stream = match socket.connect(destination).await {
            Ok(stream) => stream,
            Err(error) => return network_error(&error),
        };
        trace.connected = true;
        trace.source = stream.local_addr().ok().or(trace.source);
        match converse(stream, nonce).await {
            Ok(answer) => judge(&answer, nonce),
            Err(error) => network_error(&error),
        }
    }

    async fn udp(&self, nonce: &str, destination: SocketAddr, trace: &mut Trace) -> Outcome {
        let bound = self
            .ports
            .bind(|port| StdUdpSocket::bind((unspecified(destination), port)))
            .and_then(|socket| {
                socket.set_nonblocking(true)?;
                UdpSocket::from_std(socket)
            });
        let socket = match bound {
            Ok(socket) => socket,
            Err(error) => return local_error("open a socket", &error),
        };
        if let Err(error) = socket.connect(destination).await {
            return network_error(&error);
        }
        trace.source = socket.local_addr().ok();
        if let Err(error) = socket.send(nonce.as_bytes()).await {
            return network_error(&error);
        }
        let mut answer = [0; MAX_ANSWER];
        match socket.recv(&mut answer).await {
            Ok(length) => judge(&answer[..length], nonce),
            Err(error) => network_error(&error),
        }
    }
}

/// What is known of an attempt even if it is cut off by its time-out.
#[derive(Default)]
struct Trace {
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    connected: bool,
}

/// Source ports in rotation, below the kernel's own ephemeral range.
///
/// A port that was used a moment ago could meet the connection-tracking entry of the earlier attempt,
/// and an event for the earlier attempt would look like one for the new.
struct SourcePorts(AtomicU32);

impl SourcePorts {
    const FIRST: u16 = 10_000;
    const COUNT: u32 = 22_000;

    fn new() -> SourcePorts {
        // Another agent may have run in this pod a minute ago: start elsewhere.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        SourcePorts(AtomicU32::new(now.subsec_nanos() % Self::COUNT))
    }

    fn next(&self) -> u16 {
        let offset = self.0.fetch_add(1, Ordering::Relaxed) % Self::COUNT;
        u16::try_from(offset).map_or(Self::FIRST, |offset| Self::FIRST + offset)
    }

    fn bind<T>(&self, open: impl Fn(u16) -> io::Result<T>) -> io::Result<T> {
        let mut result = open(self.next());
        for _ in 0..64 {
            match &result {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    result = open(self.next());
                }
                _ => break,
            }
        }
        result
    }
}

fn unspecified(destination: SocketAddr) -> IpAddr {
    match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The address that the kernel would send from. Connecting a UDP socket sends nothing.
fn local_address(destination: SocketAddr) -> Option<IpAddr> {
    let socket = StdUdpSocket::bind((unspecified(destination), 0)).ok()?;
    socket.connect(destination).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

async fn converse(mut stream: TcpStream, nonce: &str) -> io::Result<Vec<u8>> {
    stream.write_all(format!("{nonce}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    BufReader::new(stream)
        .take(MAX_ANSWER as u64)
        .read_until(b'\n', &mut answer)
        .await?;
    Ok(answer)
}

fn judge(answer: &[u8], nonce: &str) -> Outcome {
    match serde_json::from_slice::<Answer>(answer) {
        Ok(answer) if answer.nonce == nonce => Outcome::Answered { by: answer.pod },
        _ => Outcome::WrongAnswer {
            got: String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned(),
        },
    }
}

fn network_error(error: &io::Error) -> Outcome {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => Outcome::Refused,
        Some(Errno::ETIMEDOUT) => Outcome::TimedOut,
        Some(
            errno @ (Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETDOWN
            | Errno::ECONNRESET
            | Errno::ECONNABORTED
            | Errno::EPIPE
            | Errno::ENOPROTOOPT
            | Errno::EACCES
            | Errno::EPERM),
        ) => Outcome::Unreachable {
            errno: format!("{errno:?}"),
        },
        _ => local_error("talk to the network", error),
    }
}

fn local_error(attempted: &str, error: &io::Error) -> Outcome {
    Outcome::LocalError {
        cause: format!("cannot {attempted}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_rotate_below_the_ephemeral_range() {
        let ports = SourcePorts(AtomicU32::new(SourcePorts::COUNT - 1));
        assert_eq!((ports.next(), ports.next()), (31_999, 10_000));
    }

    #[test]
    fn a_busy_source_port_is_passed_over() {
        let ports = SourcePorts(AtomicU32::new(0));
        let got = ports.bind(|port| match port {
            10_003 => Ok(port),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        });
        assert_eq!(got.unwrap(), 10_003);
    }
}
