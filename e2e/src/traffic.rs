//! Clients that ask without a pause until they are told to stop, and count what came back and what did not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use tokio::sync::Mutex;

use crate::chat::Endpoint;
use crate::model::NAME;

/// Clients under way.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    lost: Arc<Mutex<Vec<String>>>,
    asking: Vec<tokio::task::JoinHandle<()>>,
}

impl Traffic {
    /// Starts one client for each endpoint.
    #[must_use]
    pub fn start(endpoints: Vec<Endpoint>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let lost = Arc::new(Mutex::new(Vec::new()));
        let asking = endpoints.into_iter().map(|endpoint| {
            let (stop, answered, lost) = (stop.clone(), answered.clone(), lost.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match endpoint.ask(NAME, "Say yes.").await {
                        Ok(answer) if answer.status == 200 => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        other => lost.lock().await.push(format!("{other:?}")),
                    }
                }
            })
        });
        Self {
            asking: asking.collect(),
            stop,
            answered,
            lost,
        }
    }

    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Stops the clients after their last answers: how many were answered, and what became of the others.
    ///
    /// # Errors
    /// When a client broke off.
    pub async fn end(self) -> Result<(usize, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        for asking in self.asking {
            asking.await.context("a client broke off")?;
        }
        let lost = std::mem::take(&mut *self.lost.lock().await);
        Ok((self.answered.load(Ordering::Relaxed), lost))
    }
}
