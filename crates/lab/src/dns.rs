//! Asking the lab's DNS a question, to know that it answers and not only that it runs.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use crate::error::{Attempt as _, Error, Result};
use crate::spec::DNS_SERVICE;

/// The hidden command that asks from inside a node's network.
pub(crate) const COMMAND: &str = "__lab-dns";
/// A name that every cluster has.
const QUESTION: &str = "kubernetes.default.svc.cluster.local";

/// Asks for the API server's Service name and returns its address.
pub(crate) fn ask() -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .attempt(|| "open a socket for DNS".to_owned())?;
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .attempt(|| "bound the wait for DNS".to_owned())?;
    socket
        .send_to(&query(QUESTION), SocketAddrV4::new(DNS_SERVICE, 53))
        .attempt(|| "ask the lab's DNS".to_owned())?;
    let mut answer = [0; 512];
    let length = socket
        .recv(&mut answer)
        .attempt(|| "hear from the lab's DNS".to_owned())?;
    first_address(&answer[..length]).ok_or_else(|| Error::Unmet {
        what: format!("the lab's DNS has no address for {QUESTION}"),
        hint: "read its log: cargo xtask lab logs coredns".to_owned(),
    })
}

/// A query for the IPv4 address of `name` (RFC 1035, section 4.1).
fn query(name: &str) -> Vec<u8> {
    // Identifier 1, recursion desired, one question.
    let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend_from_slice(label.as_bytes());
    }
    // The root label, type A, class IN.
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// The first A record of an answer without error.
fn first_address(message: &[u8]) -> Option<Ipv4Addr> {
    let count = |at: usize| {
        Some(u16::from_be_bytes([
            *message.get(at)?,
            *message.get(at + 1)?,
        ]))
    };
    if message.get(3)? & 0x0f != 0 {
        return None;
    }
    let mut at = 12;
    for _ in 0..count(4)? {
        at = skip_name(message, at)? + 4;
    }
    for _ in 0..count(6)? {
        at = skip_name(message, at)?;
        let (kind, length) = (count(at)?, usize::from(count(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == 1 {
            let bytes: [u8; 4] = data.try_into().ok()?;
            return Some(Ipv4Addr::from(bytes));
        }
        at += 10 + length;
    }
    None
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            // A pointer ends a name.
            byte if byte & 0xc0 == 0xc0 => return Some(at + 2),
            byte => at += 1 + usize::from(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_a_compressed_name_is_read() {
        let mut message = query("a.b");
        message[7] = 1;
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 96, 0, 1]);
        assert_eq!(first_address(&message), Some(Ipv4Addr::new(10, 96, 0, 1)));
    }

    #[test]
    fn an_error_or_a_torn_answer_is_no_address() {
        let mut message = query("a.b");
        message[3] = 3;
        assert_eq!(first_address(&message), None);
        for end in 0..message.len() {
            assert_eq!(first_address(&message[..end]), None);
        }
    }
}
