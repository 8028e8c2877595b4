//! Tasks that are watched: a node that lost one of them would look alive and hear nobody.
//!
//! A task that panics, or ends although it must not, raises the alarm once; the node then ends and says why. quinn's own tasks
//! are spawned here, too.

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Spawns tasks and raises the alarm when one is lost.
#[derive(Clone)]
pub(super) struct Watch(Arc<Mutex<Option<oneshot::Sender<String>>>>);

impl Watch {
    /// A watch, and what its alarm sounds like.
    pub(super) fn new() -> (Self, oneshot::Receiver<String>) {
        let (alarm, heard) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(alarm)))), heard)
    }

    /// Spawns a task that may end, but not by a panic.
    pub(super) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let guard = Guard { watch: self.clone(), name };
        tokio::spawn(async move {
            let _guard = guard;
            task.await;
        })
    }

    /// Spawns a task that must never end.
    pub(super) fn spawn_for_ever(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let watch = self.clone();
        self.spawn(name, async move {
            task.await;
            watch.raise(format!("the task that must go on to {name} has ended"));
        });
    }

    fn raise(&self, what: String) {
        let alarm = self.0.lock().expect("never held while panicking").take();
        // Only the first is told. If nobody listens, the node is ending already.
        if let Some(alarm) = alarm {
            let _ = alarm.send(what);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Goes with its task; notices whether a panic takes it away.
struct Guard {
    watch: Watch,
    name: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.watch.raise(format!("the task to {} panicked", self.name));
        }
    }
}

/// quinn's tasks are watched like ours.
#[derive(Debug)]
pub(super) struct WatchedRuntime(pub(super) Watch);

impl Runtime for WatchedRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn("drive QUIC", task);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(act: impl AsyncFnOnce(&Watch)) -> Option<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (watch, mut alarm) = Watch::new();
            act(&watch).await;
            alarm.try_recv().ok()
        })
    }

    #[test]
    fn a_task_that_ends_as_it_may_raises_no_alarm() {
        let alarm = heard(async |watch| {
            watch.spawn("end", async {}).await.unwrap();
            let aborted = watch.spawn("wait", std::future::pending());
            aborted.abort();
            assert!(aborted.await.unwrap_err().is_cancelled());
        });
        assert_eq!(alarm, None);
    }

    #[test]
    fn a_task_that_panics_or_must_not_end_raises_the_alarm() {
        let alarm = heard(async |watch| {
            watch.spawn("fail", async { panic!("on purpose") }).await.unwrap_err();
            watch.spawn("fail again", async { panic!("on purpose") }).await.unwrap_err();
        });
        assert_eq!(alarm.as_deref(), Some("the task to fail panicked"));
        let alarm = heard(async |watch| {
            watch.spawn_for_ever("go on", async {});
            while watch.0.lock().unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(alarm.as_deref(), Some("the task that must go on to go on has ended"));
    }
}
