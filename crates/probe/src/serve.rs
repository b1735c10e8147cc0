//! The echo servers of a proof pod: they return the nonce with the pod's name, and remember it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use probe::Answer;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::identity;
use crate::ledger::{self, Ledger};

const MAX_NONCE: usize = 256;
const CONVERSATION_TIMEOUT: Duration = Duration::from_secs(5);

/// The ports to serve.
#[derive(Default)]
pub(crate) struct Ports {
    pub(crate) tcp: Vec<u16>,
    pub(crate) udp: Vec<u16>,
}

/// Serves until SIGTERM or SIGINT; as PID 1 these would otherwise be ignored.
pub(crate) async fn run(ports: Ports) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ledger = Arc::new(Ledger::default());
    let pod: Arc<str> = identity::pod().into();

    let mut servers = JoinSet::new();
    servers.spawn(ledger::answer(ledger::listen()?, Arc::clone(&ledger)));
    for port in ports.tcp {
        for socket in sockets(Type::STREAM, port)? {
            let listener = TcpListener::from_std(socket.into())?;
            servers.spawn(serve_tcp(listener, Arc::clone(&pod), Arc::clone(&ledger)));
        }
    }
    for port in ports.udp {
        for socket in sockets(Type::DGRAM, port)? {
            let socket = UdpSocket::from_std(socket.into())?;
            servers.spawn(serve_udp(socket, Arc::clone(&pod), Arc::clone(&ledger)));
        }
    }
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = servers.join_next() => ended.map_err(io::Error::other)?,
    }
}

/// The IPv4 socket must open; the IPv6 one may be impossible in the pod.
fn sockets(kind: Type, port: u16) -> io::Result<Vec<Socket>> {
    let v4 = (Ipv4Addr::UNSPECIFIED, port).into();
    let mut sockets =
        vec![bind(kind, v4).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot serve on {v4}: {error}"))
        })?];
    sockets.extend(bind(kind, (Ipv6Addr::UNSPECIFIED, port).into()));
    Ok(sockets)
}

fn bind(kind: Type, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(1024)?;
    }
    Ok(socket)
}

async fn serve_tcp(listener: TcpListener, pod: Arc<str>, ledger: Arc<Ledger>) -> io::Result<()> {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, or the peer was gone already: neither may end the server.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (pod, ledger) = (Arc::clone(&pod), Arc::clone(&ledger));
        tokio::spawn(timeout(CONVERSATION_TIMEOUT, async move {
            converse(stream, &pod, &ledger).await
        }));
    }
}

async fn converse(stream: TcpStream, pod: &str, ledger: &Ledger) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream)
        .take(MAX_NONCE as u64)
        .read_until(b'\n', &mut line)
        .await?;
    if let Some(reply) = reply(&line, pod, ledger) {
        stream.write_all(&reply).await?;
        stream.shutdown().await?;
    }
    Ok(())
}

async fn serve_udp(socket: UdpSocket, pod: Arc<str>, ledger: Arc<Ledger>) -> io::Result<()> {
    let mut datagram = [0; MAX_NONCE];
    loop {
        // Errors are of earlier replies (ICMP) or of a passing shortage; the next datagram is another matter.
        if let Ok((length, peer)) = socket.recv_from(&mut datagram).await
            && let Some(reply) = reply(&datagram[..length], &pod, &ledger)
        {
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}

fn reply(received: &[u8], pod: &str, ledger: &Ledger) -> Option<Vec<u8>> {
    let nonce = str::from_utf8(received).ok()?.trim();
    if nonce.is_empty() {
        return None;
    }
    ledger.record(nonce);
    let answer = Answer {
        pod: pod.to_owned(),
        nonce: nonce.to_owned(),
    };
    let mut reply = serde_json::to_vec(&answer).ok()?;
    reply.push(b'\n');
    Some(reply)
}
