//! The lab's own network: a bridge in a network namespace that only the supervisor holds.
//!
//! Nothing of it is on the machine: no bridge, no link, no route. The namespace
//! has no name, so the kernel takes it away, links included, when its last
//! thread ends. The API server is reached through one loopback port, whose
//! connections are carried over by threads that live in the namespace.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::error::{Attempt as _, Error, Result};
use crate::run::Program;
use crate::spec::{API_PORT, GATEWAY};

const BRIDGE: &str = "hf0";

/// The handle of the thread that lives in the lab's network namespace.
pub(crate) struct Fabric {
    orders: Sender<Order>,
}

struct Order {
    link: String,
    process: u32,
    reply: Sender<Result<()>>,
}

/// Opens the loopback port on which the API server will be reached; 0 takes a free one.
pub(crate) fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            Error::Unmet {
                what: format!("port {port} of 127.0.0.1 is in use by another program"),
                hint: "give --api-port another number, or leave it out to take a free one"
                    .to_owned(),
            }
        } else {
            Error::Io {
                attempted: format!("listen on port {port} of 127.0.0.1"),
                source,
            }
        }
    })
}

impl Fabric {
    /// Makes the namespace with its bridge, and carries connections of `listener` to the API server.
    pub(crate) fn start(listener: TcpListener, api_server: Ipv4Addr) -> Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            let made = make();
            let failed = made.is_err();
            let _ = ready.send(made);
            if failed {
                return;
            }
            // Threads started here inherit the namespace.
            std::thread::spawn(move || forward(&listener, api_server));
            serve(&inbox);
        });
        is_ready.recv().unwrap_or_else(|_| Err(thread_lost()))?;
        Ok(Self { orders })
    }

    /// Links the network namespace of `process` to the bridge, as its `eth0`.
    pub(crate) fn attach(&self, link: &str, process: u32) -> Result<()> {
        let (reply, answer) = mpsc::channel();
        let order = Order {
            link: link.to_owned(),
            process,
            reply,
        };
        self.orders.send(order).map_err(|_| thread_lost())?;
        answer.recv().unwrap_or_else(|_| Err(thread_lost()))
    }
}

fn thread_lost() -> Error {
    Error::Unmet {
        what: "the lab's network thread ended early".to_owned(),
        hint: "read the supervisor's log".to_owned(),
    }
}

fn ip(words: &str) -> Result<()> {
    Program::new("ip").args(words.split(' ')).run()
}

fn make() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).attempt(|| "make the lab's network namespace".to_owned())?;
    ip("link set lo up")?;
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("addr add {GATEWAY}/24 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))
}

fn serve(inbox: &Receiver<Order>) {
    while let Ok(order) = inbox.recv() {
        let Order { link, process, .. } = &order;
        let done = ip(&format!(
            "link add {link} type veth peer name eth0 netns {process}"
        ))
        .and_then(|()| ip(&format!("link set {link} master {BRIDGE} up")));
        let _ = order.reply.send(done);
    }
}

fn forward(listener: &TcpListener, api_server: Ipv4Addr) {
    let target = SocketAddr::V4(SocketAddrV4::new(api_server, API_PORT));
    for client in listener.incoming() {
        let Ok(client) = client else {
            // Out of descriptors, most likely: let some connections end first.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        std::thread::spawn(move || {
            // The client sees a closed connection, as it would with the server gone.
            if let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) {
                let _ = carry(&client, &server);
            }
        });
    }
}

fn carry(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let _ = io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Write);
    let _ = up.join();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_said_plainly() {
        let first = listen(0).unwrap();
        let port = first.local_addr().unwrap().port();
        let error = listen(port).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("port {port} of 127.0.0.1 is in use by another program")
        );
        assert!(error.hint().unwrap().contains("--api-port"));
    }
}
