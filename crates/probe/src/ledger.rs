//! What arrived at this pod's server, and the socket by which an agent in the same pod can ask.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use probe::MAX_REMEMBERED_NONCES;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::identity;

const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// The nonces that arrived, oldest forgotten first.
#[derive(Default)]
pub(crate) struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    order: VecDeque<String>,
    known: HashSet<String>,
}

impl Ledger {
    pub(crate) fn record(&self, nonce: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.known.insert(nonce.to_owned()) {
            return;
        }
        inner.order.push_back(nonce.to_owned());
        if inner.order.len() > MAX_REMEMBERED_NONCES
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.known.remove(&oldest);
        }
    }

    fn arrived(&self, mut nonces: Vec<String>) -> Vec<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.retain(|nonce| inner.known.contains(nonce));
        nonces
    }
}

/// Opens the socket on which agents ask.
pub(crate) fn listen() -> io::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(identity::ledger_socket())?;
    let listener = unix::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Answers agents for ever.
pub(crate) async fn answer(listener: UnixListener, ledger: Arc<Ledger>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let ledger = Arc::clone(&ledger);
        tokio::spawn(timeout(QUESTION_TIMEOUT, async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let nonces = ledger.arrived(serde_json::from_str(&line)?);
            let mut reply = serde_json::to_vec(&nonces)?;
            reply.push(b'\n');
            stream.write_all(&reply).await
        }));
    }
}

/// Asks the server of this pod which of the nonces it received.
pub(crate) async fn ask(nonces: &[String]) -> io::Result<Vec<String>> {
    let conversation = async {
        let address = SocketAddr::from_abstract_name(identity::ledger_socket())?;
        let stream = unix::UnixStream::connect_addr(&address)?;
        stream.set_nonblocking(true)?;
        let mut stream = BufReader::new(UnixStream::from_std(stream)?);
        let mut question = serde_json::to_vec(nonces)?;
        question.push(b'\n');
        stream.write_all(&question).await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    };
    timeout(QUESTION_TIMEOUT, conversation)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let ledger = Ledger::default();
        for number in 0..=MAX_REMEMBERED_NONCES {
            ledger.record(&number.to_string());
        }
        let newest = MAX_REMEMBERED_NONCES.to_string();
        let arrived = ledger.arrived(vec!["0".to_owned(), "1".to_owned(), newest.clone()]);
        assert_eq!(arrived, ["1".to_owned(), newest]);
    }
}
