//! Ctrl-C and SIGTERM as a value that can be passed down and awaited anywhere.

use tokio::sync::watch;

/// Tells whether the user wants to stop. Clones share the answer.
#[derive(Clone, Debug)]
pub struct Interrupt(watch::Receiver<bool>);

/// Raises an [`Interrupt`]; when it is dropped without that, the interrupt never comes.
#[derive(Debug)]
pub struct Raiser(watch::Sender<bool>);

impl Interrupt {
    /// An interrupt and the means to raise it.
    pub fn new() -> (Raiser, Self) {
        let (sender, receiver) = watch::channel(false);
        (Raiser(sender), Self(receiver))
    }

    /// Returns once the interrupt has been raised.
    pub async fn raised(&self) {
        if self.0.clone().wait_for(|raised| *raised).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Raiser {
    /// Asks everybody to stop.
    pub fn raise(&self) {
        self.0.send_replace(true);
    }

    /// Raises at the first SIGINT or SIGTERM that this process gets.
    pub async fn raise_on_signal(self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result?,
            _ = terminate.recv() => {}
        }
        self.raise();
        // Kept until the process ends: dropping the sender would only cost the late listeners.
        std::future::pending::<()>().await;
        Ok(())
    }
}
