//! Live progress of long work: what runs, how far it is, how long it took last time.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fs_err as fs;

/// How often a plain log gets a line about a step that is still running.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);
/// How often a terminal's line is drawn anew.
const LIVE_INTERVAL: Duration = Duration::from_millis(500);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Whole lines, for logs.
    Plain,
    /// One line that is rewritten.
    Live,
}

/// Prints steps to standard error and remembers how long each took.
#[derive(Debug, Clone)]
pub struct Progress {
    style: Style,
    started: Instant,
    history: Arc<Mutex<History>>,
}

/// One step that is under way.
#[derive(Debug)]
pub struct Step {
    title: String,
    started: Instant,
    progress: Progress,
    detail: Arc<Mutex<String>>,
    stop: Option<Sender<()>>,
    ticker: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct History {
    path: Option<PathBuf>,
    seconds: BTreeMap<String, f64>,
}

impl Progress {
    /// Progress whose memory lies in the cache folder. Plain lines in CI or a pipe.
    pub fn new(cache_root: &Path) -> Self {
        let live = std::io::stderr().is_terminal() && std::env::var_os("CI").is_none();
        let path = cache_root.join("durations.json");
        let seconds = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Self {
            style: if live { Style::Live } else { Style::Plain },
            started: Instant::now(),
            history: Arc::new(Mutex::new(History {
                path: Some(path),
                seconds,
            })),
        }
    }

    /// One line about something that is already done or decided.
    pub fn note(&self, text: &str) {
        let clear = if self.style == Style::Live {
            "\r\x1b[K"
        } else {
            ""
        };
        emit(&format!("{clear}{} {text}\n", self.stamp()));
    }

    /// Starts a step. `title` is a phrase such as `building kubernetes v1.36.3`.
    pub fn step(&self, title: impl Into<String>) -> Step {
        let title = title.into();
        let last = self.last_time(&title);
        if self.style == Style::Plain {
            self.note(&format!("{title} …{}", describe_last(last)));
        }
        let detail = Arc::new(Mutex::new(String::new()));
        let (stop, stopped) = mpsc::channel();
        let ticker = {
            let (title, detail, progress) = (title.clone(), Arc::clone(&detail), self.clone());
            std::thread::spawn(move || {
                let started = Instant::now();
                let interval = match progress.style {
                    Style::Plain => PLAIN_INTERVAL,
                    Style::Live => LIVE_INTERVAL,
                };
                while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                    let detail = detail
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone();
                    progress.tick(&title, &detail, started.elapsed(), last);
                }
            })
        };
        Step {
            title,
            started: Instant::now(),
            progress: self.clone(),
            detail,
            stop: Some(stop),
            ticker: Some(ticker),
        }
    }

    fn stamp(&self) -> String {
        format!("[{:>6.1}s]", self.started.elapsed().as_secs_f64())
    }

    fn tick(&self, title: &str, detail: &str, elapsed: Duration, last: Option<Duration>) {
        let text = running(title, detail, elapsed, last);
        match self.style {
            Style::Plain => self.note(&text),
            Style::Live => emit(&format!("\r\x1b[K{} {text}", self.stamp())),
        }
    }

    fn last_time(&self, title: &str) -> Option<Duration> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history
            .seconds
            .get(title)
            .map(|seconds| Duration::from_secs_f64(seconds.max(0.0)))
    }

    fn remember(&self, title: &str, took: Duration) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.seconds.insert(title.to_owned(), took.as_secs_f64());
        // Losing the memory costs an estimate, nothing else.
        if let (Some(path), Ok(text)) = (&history.path, serde_json::to_vec_pretty(&history.seconds))
        {
            let scratch = path.with_extension(format!("{}.tmp", std::process::id()));
            let _ = fs::write(&scratch, text).and_then(|()| fs::rename(&scratch, path));
        }
    }
}

impl Step {
    /// Says how far the step is, for the next line.
    pub fn detail(&self, text: impl Into<String>) {
        *self.detail.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    /// Ends the step well; its duration is kept for the next estimate.
    pub fn done(mut self) -> Duration {
        let took = self.started.elapsed();
        self.end();
        self.progress.remember(&self.title, took);
        self.progress
            .note(&format!("{}: done in {}", self.title, human(took)));
        took
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.end();
    }
}

fn emit(text: &str) {
    // A closed standard error must not end the work.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn describe_last(last: Option<Duration>) -> String {
    match last {
        Some(last) if last >= Duration::from_secs(2) => format!(" ({} last time)", human(last)),
        _ => String::new(),
    }
}

fn running(title: &str, detail: &str, elapsed: Duration, last: Option<Duration>) -> String {
    let detail = if detail.is_empty() {
        String::new()
    } else {
        format!(": {detail}")
    };
    let estimate = match last.map(|last| (last, last.checked_sub(elapsed))) {
        Some((last, Some(left))) => format!(" of about {}, {} left", human(last), human(left)),
        Some((last, None)) => format!(", {} last time", human(last)),
        None => String::new(),
    };
    format!("{title}{detail} ({}{estimate})", human(elapsed))
}

/// `4m05s`, `12s`, `0.8s`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 {
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    } else if seconds >= 10 {
        format!("{seconds}s")
    } else {
        format!("{:.1}s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_step_says_how_far_and_how_long() {
        let line = running(
            "building etcd",
            "120 packages",
            Duration::from_secs(30),
            Some(Duration::from_secs(45)),
        );
        assert_eq!(
            line,
            "building etcd: 120 packages (30s of about 45s, 15s left)"
        );
    }

    #[test]
    fn a_step_slower_than_last_time_makes_no_promise() {
        let line = running(
            "building etcd",
            "",
            Duration::from_secs(90),
            Some(Duration::from_secs(45)),
        );
        assert_eq!(line, "building etcd (1m30s, 45s last time)");
    }

    #[test]
    fn durations_are_kept_for_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        Progress::new(folder.path()).step("a step").done();
        assert!(Progress::new(folder.path()).last_time("a step").is_some());
    }
}
