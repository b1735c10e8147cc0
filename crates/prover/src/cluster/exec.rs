//! Programs in pods: one that is talked to, one that is listened to, one that is waited for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, AttachParams, AttachedProcess};
use probe::{Attempt, AttemptResult, Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::model::PodRef;

/// Names are resolved before the attempts' own time begins to count.
const NAME_RESOLUTION: Duration = Duration::from_secs(10);
/// For the way there and back through the API server.
const ROUND_TRIP: Duration = Duration::from_secs(5);
const PIPE: usize = 256 * 1024;
const KEPT_STDERR: usize = 4096;

/// The end of what a program wrote to stderr.
#[derive(Clone, Default)]
pub(super) struct Stderr(Arc<Mutex<String>>);

impl Stderr {
    fn collect(reader: impl AsyncRead + Send + Unpin + 'static) -> Stderr {
        let stderr = Stderr::default();
        let kept = stderr.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut kept = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() < KEPT_STDERR {
                    kept.push_str(&line);
                    kept.push('\n');
                }
            }
        });
        stderr
    }

    pub(super) fn text(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .trim()
            .to_owned()
    }
}

fn explain(what: &str, stderr: &Stderr) -> String {
    match stderr.text() {
        text if text.is_empty() => what.to_owned(),
        text => format!("{what}; it wrote: {}", text.replace('\n', "; ")),
    }
}

/// Starts a program in a pod; its stdin is open only if asked for.
async fn start(
    client: &Client,
    pod: &PodRef,
    container: Option<&str>,
    command: &[&str],
    stdin: bool,
) -> Result<AttachedProcess, String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let mut parameters = AttachParams::default()
        .stdin(stdin)
        .stdout(true)
        .stderr(true)
        .max_stdin_buf_size(PIPE)
        .max_stdout_buf_size(PIPE)
        .max_stderr_buf_size(PIPE);
    if let Some(container) = container {
        parameters = parameters.container(container);
    }
    timeout(
        ROUND_TRIP * 2,
        api.exec(&pod.name, command.iter().copied(), &parameters),
    )
    .await
    .map_err(|_| {
        format!(
            "cannot start {} in {pod}: no answer from the API server",
            command.join(" ")
        )
    })?
    .map_err(|error| format!("cannot start {} in {pod}: {error}", command.join(" ")))
}

/// Runs a program to its end and returns what it printed.
pub(super) async fn output(
    client: &Client,
    pod: &PodRef,
    container: &str,
    command: &[&str],
    limit: Duration,
) -> Result<String, String> {
    let mut process = start(client, pod, Some(container), command, false).await?;
    let stderr = process.stderr().map(Stderr::collect).unwrap_or_default();
    let status = process.take_status();
    let name = command.join(" ");
    let run = async {
        let mut printed = String::new();
        if let Some(mut stdout) = process.stdout() {
            stdout
                .read_to_string(&mut printed)
                .await
                .map_err(|error| format!("cannot read from {name} in {pod}: {error}"))?;
        }
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        match status.and_then(|status| status.status) {
            Some(status) if status == "Success" => Ok(printed),
            _ => Err(explain(&format!("{name} in {pod} failed"), &stderr)),
        }
    };
    timeout(limit, run).await.unwrap_or_else(|_| {
        Err(format!(
            "{name} in {pod} did not end in {} s",
            limit.as_secs()
        ))
    })
}

/// A program whose lines are listened to until it is dropped.
pub(super) struct Listener {
    _process: AttachedProcess,
    pub(super) stderr: Stderr,
}

/// Starts a program, gives every line of its stdout to `on_line`, and calls `on_end` when there are no more.
pub(super) async fn listen(
    client: &Client,
    pod: &PodRef,
    container: &str,
    command: &[&str],
    mut on_line: impl FnMut(String) + Send + 'static,
    on_end: impl FnOnce(String, Stderr) + Send + 'static,
) -> Result<Listener, String> {
    let mut process = start(client, pod, Some(container), command, false).await?;
    let stderr = process.stderr().map(Stderr::collect).unwrap_or_default();
    let stdout = process.stdout().ok_or("the API server gave no stdout")?;
    let last_words = stderr.clone();
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdout).lines();
        let end = loop {
            match lines.next_line().await {
                Ok(Some(line)) => on_line(line),
                Ok(None) => break "the stream ended".to_owned(),
                Err(error) => break format!("the stream broke: {error}"),
            }
        };
        on_end(end, last_words);
    });
    Ok(Listener {
        _process: process,
        stderr,
    })
}

/// A conversation with the probe in one pod.
pub(super) struct Session {
    pod: PodRef,
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    responses: mpsc::UnboundedReceiver<Response>,
    stderr: Stderr,
    next_batch: u64,
    /// Version of the probe.
    pub(super) version: String,
    _process: AttachedProcess,
}

impl Session {
    pub(super) async fn open(client: &Client, pod: &PodRef) -> Result<Session, String> {
        let mut process = start(client, pod, None, &["/holdfast-probe", "agent"], true).await?;
        let stderr = process.stderr().map(Stderr::collect).unwrap_or_default();
        let stdin = process.stdin().ok_or("the API server gave no stdin")?;
        let stdout = process.stdout().ok_or("the API server gave no stdout")?;
        let (sender, responses) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let response =
                    serde_json::from_str(&line).unwrap_or_else(|error| Response::Failed {
                        batch: None,
                        cause: format!("an unreadable line: {error}"),
                    });
                if sender.send(response).is_err() {
                    break;
                }
            }
        });
        let mut session = Session {
            pod: pod.clone(),
            stdin: Box::new(stdin),
            responses,
            stderr,
            next_batch: 0,
            version: String::new(),
            _process: process,
        };
        match session.receive(Instant::now() + ROUND_TRIP * 2).await? {
            Response::Ready { pod, version } if pod == session.pod.to_string() => {
                session.version = version;
                Ok(session)
            }
            Response::Ready { pod, .. } => Err(format!("the probe says that it runs in {pod}")),
            other => Err(format!("the probe did not say `ready` first: {other:?}")),
        }
    }

    async fn receive(&mut self, deadline: Instant) -> Result<Response, String> {
        match timeout_at(deadline, self.responses.recv()).await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(explain("the session ended", &self.stderr)),
            Err(_) => Err(explain("the session did not answer in time", &self.stderr)),
        }
    }

    async fn send(&mut self, request: &Request, deadline: Instant) -> Result<(), String> {
        let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        line.push(b'\n');
        let write = async {
            self.stdin.write_all(&line).await?;
            self.stdin.flush().await
        };
        match timeout_at(deadline, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(explain(
                &format!("cannot write to the session: {error}"),
                &self.stderr,
            )),
            Err(_) => Err(explain("the session takes no more requests", &self.stderr)),
        }
    }

    fn batch_name(&mut self) -> String {
        self.next_batch += 1;
        self.next_batch.to_string()
    }

    /// Makes all attempts at once and returns what came of them.
    pub(super) async fn attempt(
        &mut self,
        attempts: Vec<Attempt>,
        limit: Duration,
    ) -> Result<Vec<AttemptResult>, String> {
        let name = self.batch_name();
        let deadline = Instant::now() + limit + NAME_RESOLUTION + ROUND_TRIP;
        let request = Request::Batch {
            batch: name.clone(),
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            attempts,
        };
        self.send(&request, deadline).await?;
        let mut results = Vec::new();
        loop {
            match self.receive(deadline).await? {
                Response::Attempt { batch, result } if batch == name => results.push(result),
                Response::Done { batch } if batch == name => return Ok(results),
                Response::Failed { cause, .. } => return Err(cause),
                // The rest of a batch that was given up on.
                _ => {}
            }
        }
    }

    /// Asks which of the nonces arrived at this pod's server.
    pub(super) async fn received(&mut self, nonces: Vec<String>) -> Result<Vec<String>, String> {
        let name = self.batch_name();
        let deadline = Instant::now() + ROUND_TRIP * 2;
        let request = Request::Received {
            batch: name.clone(),
            nonces,
        };
        self.send(&request, deadline).await?;
        loop {
            match self.receive(deadline).await? {
                Response::Received { batch, nonces } if batch == name => return Ok(nonces),
                Response::Failed { batch, cause } if batch.as_ref() == Some(&name) => {
                    return Err(cause);
                }
                _ => {}
            }
        }
    }
}
