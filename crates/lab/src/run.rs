//! The one door to other programs: every failure carries the command and the end of its output.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Output;

use duct::Expression;
use nix::sys::signal::Signal;

use crate::error::{Attempt as _, Error, Result};

/// How many lines of a failed program's error output are shown.
const TAIL_LINES: usize = 20;

/// A program to run and wait for.
#[derive(Debug, Clone)]
pub struct Program {
    words: Vec<OsString>,
    folder: Option<PathBuf>,
    variables: Vec<(OsString, OsString)>,
    input: Input,
}

/// What a program reads on standard input.
#[derive(Debug, Clone)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl Program {
    /// A program by name or path.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            words: vec![program.into()],
            folder: None,
            variables: Vec::new(),
            input: Input::Nothing,
        }
    }

    /// Like [`Program::new`], but the kernel ends the program with SIGTERM when this
    /// process dies, so that a long build does not go on after a SIGKILL of its parent.
    ///
    /// The tie is to the calling thread: call it from one that lives as long as the program.
    pub fn tied(program: impl Into<OsString>) -> Self {
        Self::tied_by(Signal::SIGTERM, program)
    }

    /// Like [`Program::tied`], for a program that ignores SIGTERM.
    pub fn tied_by(signal: Signal, program: impl Into<OsString>) -> Self {
        Self::new("setpriv")
            .arg("--pdeathsig")
            .arg(signal.as_str().trim_start_matches("SIG"))
            .arg("--")
            .arg(program)
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.words.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.words.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets the working folder.
    #[must_use]
    pub fn dir(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Gives the program its standard input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(input.into());
        self
    }

    /// Lets the program read a file, opened by this process, as its standard input.
    #[must_use]
    pub fn input_file(mut self, path: &Path) -> Self {
        self.input = Input::File(path.to_owned());
        self
    }

    /// The command line, for people.
    pub fn line(&self) -> String {
        let words = match self.words.first() {
            Some(first) if first == "setpriv" => &self.words[4..],
            _ => &self.words[..],
        };
        words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn expression(&self) -> Expression {
        let mut expression = duct::cmd(&self.words[0], &self.words[1..]);
        if let Some(folder) = &self.folder {
            expression = expression.dir(folder);
        }
        for (name, value) in &self.variables {
            expression = expression.env(name, value);
        }
        match &self.input {
            Input::Nothing => expression.stdin_null(),
            Input::Bytes(bytes) => expression.stdin_bytes(bytes.clone()),
            Input::File(path) => expression.stdin_path(path),
        }
    }

    fn attempt(&self) -> String {
        format!("run `{}`", self.line())
    }

    /// Runs it and returns its standard output; anything but success is an error.
    pub fn read(&self) -> Result<String> {
        let output = self
            .expression()
            .stdout_capture()
            .stderr_capture()
            .unchecked()
            .run()
            .attempt(|| self.attempt())?;
        self.check(&output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it for its effect alone.
    pub fn run(&self) -> Result<()> {
        self.read().map(drop)
    }

    /// Runs it and shows its merged output as it comes. A failure does not repeat it.
    pub fn run_showing(&self, show: impl FnMut(&str)) -> Result<()> {
        self.run_with_lines(show).map_err(|error| match error {
            Error::Command {
                command, status, ..
            } => Error::Command {
                command,
                status,
                tail: String::new(),
            },
            other => other,
        })
    }

    /// Runs it and hands each line of its merged output to `line` as it comes.
    pub fn run_with_lines(&self, mut line: impl FnMut(&str)) -> Result<()> {
        let reader = self
            .expression()
            .stderr_to_stdout()
            .unchecked()
            .reader()
            .attempt(|| self.attempt())?;
        let mut tail = std::collections::VecDeque::new();
        let mut lines = BufReader::new(&reader);
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            let read = lines
                .read_until(b'\n', &mut buffer)
                .attempt(|| self.attempt())?;
            if read == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&buffer);
            let text = text.trim_end();
            line(text);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(text.to_owned());
        }
        // At the end of output the reader has waited for the program, so there is a status.
        let status = reader.try_wait().attempt(|| self.attempt())?;
        if status.is_some_and(|output| output.status.success()) {
            return Ok(());
        }
        Err(Error::Command {
            command: self.line(),
            status: status.map_or_else(
                || "it closed its output and went on".to_owned(),
                |output| output.status.to_string(),
            ),
            tail: tail.into_iter().collect::<Vec<_>>().join("\n"),
        })
    }

    fn check(&self, output: &Output) -> Result<()> {
        if output.status.success() {
            return Ok(());
        }
        let text = if output.stderr.is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        let text = String::from_utf8_lossy(text);
        let lines: Vec<&str> = text.lines().collect();
        Err(Error::Command {
            command: self.line(),
            status: output.status.to_string(),
            tail: lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_shows_the_end_of_its_errors() {
        let error = Program::new("sh")
            .args(["-c", "echo wrong thing >&2; exit 3"])
            .run()
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("wrong thing"), "{error}");
    }

    #[test]
    fn lines_arrive_and_a_failure_after_them_is_seen() {
        let mut lines = Vec::new();
        let error = Program::new("sh")
            .args(["-c", "echo a; echo b >&2; exit 1"])
            .run_with_lines(|line| lines.push(line.to_owned()))
            .unwrap_err();
        assert_eq!(lines, ["a", "b"]);
        assert!(matches!(error, Error::Command { .. }));
    }

    #[test]
    fn the_tie_to_this_process_is_not_shown() {
        assert_eq!(Program::tied("go").arg("build").line(), "go build");
    }
}
