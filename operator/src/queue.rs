//! Which objects of one kind are to be looked at, since when, and how many wait.
//!
//! A watch is never held up here: an object that waits already is not put in line again, so the line is no longer than there are objects.
//! While the queue is closed (no leader), nothing waits; whoever opens it names every object there is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::{Stream, stream};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use crate::kubernetes::Kind;

/// Objects of one kind that wait. Cloning gives another handle to the same line.
pub struct Queue<K: Kind>(Arc<Shared<K>>);

struct Shared<K: Kind> {
    line: Mutex<Line<K>>,
    news: Notify,
}

struct Line<K: Kind> {
    is_open: bool,
    /// Since when each object waits for its reconcile to start.
    waiting: HashMap<ObjectRef<K>, Instant>,
    /// Those of them that the controller has not been told.
    untold: VecDeque<ObjectRef<K>>,
    /// Since when an object whose reconcile failed has been waiting.
    failed: HashMap<ObjectRef<K>, Instant>,
}

impl<K: Kind> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Kind> Default for Queue<K> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            line: Mutex::new(Line {
                is_open: false,
                waiting: HashMap::new(),
                untold: VecDeque::new(),
                failed: HashMap::new(),
            }),
            news: Notify::new(),
        }))
    }
}

impl<K: Kind> Queue<K> {
    /// Something about the object has changed.
    pub fn wake(&self, reference: ObjectRef<K>) {
        let mut line = self.line();
        if line.is_open && !line.waiting.contains_key(&reference) {
            line.waiting.insert(reference.clone(), Instant::now());
            line.untold.push_back(reference);
            drop(line);
            self.0.news.notify_one();
        }
    }

    /// From now on objects wait, these first.
    pub fn open(&self, all: impl Iterator<Item = ObjectRef<K>>) {
        self.line().is_open = true;
        all.for_each(|reference| self.wake(reference));
    }

    /// A reconcile of the object starts. Returns since when it was waited for; none if a timer started it.
    #[must_use]
    pub fn started(&self, reference: &ObjectRef<K>) -> Option<Instant> {
        let mut line = self.line();
        let woken = line.waiting.remove(reference);
        let earlier = line.failed.remove(reference);
        earlier.or(woken)
    }

    /// The reconcile failed, so whoever waits for it still does.
    pub fn failed(&self, reference: ObjectRef<K>, since: Instant) {
        self.line().failed.insert(reference, since);
    }

    /// The object no longer exists, so nothing about it waits.
    pub fn gone(&self, reference: &ObjectRef<K>) {
        let mut line = self.line();
        line.waiting.remove(reference);
        line.failed.remove(reference);
    }

    /// How many objects wait for their reconcile to start.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.line().waiting.len()
    }

    /// The objects in the order in which they were woken. One reader only.
    pub fn stream(&self) -> impl Stream<Item = ObjectRef<K>> + Send + use<K> {
        stream::unfold(self.clone(), |queue| async move {
            loop {
                let next = queue.line().untold.pop_front();
                if let Some(reference) = next {
                    return Some((reference, queue));
                }
                queue.0.news.notified().await;
            }
        })
    }

    fn line(&self) -> MutexGuard<'_, Line<K>> {
        // Every change leaves the line whole, so a panic elsewhere spoils nothing.
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};
    use k8s_openapi::api::batch::v1::Job;

    use super::*;

    fn told(queue: &Queue<Job>) -> Vec<String> {
        let mut stream = Box::pin(queue.stream());
        std::iter::from_fn(|| stream.next().now_or_never().flatten())
            .map(|reference| reference.name)
            .collect()
    }

    #[test]
    fn an_object_waits_once_until_its_reconcile_starts() {
        let queue = Queue::default();
        queue.open(std::iter::empty());
        let one = ObjectRef::new("one");
        queue.wake(one.clone());
        queue.wake(ObjectRef::new("two"));
        queue.wake(one.clone());
        assert_eq!(
            (told(&queue), queue.depth()),
            (vec!["one".into(), "two".into()], 2)
        );
        queue.wake(one.clone());
        assert!(told(&queue).is_empty());
        assert!(queue.started(&one).is_some());
        queue.wake(one.clone());
        assert_eq!((told(&queue), queue.depth()), (vec!["one".into()], 2));
        queue.gone(&one);
        assert_eq!(queue.depth(), 1);
    }

    #[test]
    fn a_closed_queue_keeps_nothing_and_an_opened_one_begins_with_everything() {
        let queue = Queue::<Job>::default();
        queue.wake(ObjectRef::new("early"));
        assert_eq!(queue.depth(), 0);
        queue.open([ObjectRef::new("all")].into_iter());
        assert_eq!(told(&queue), ["all"]);
    }

    #[test]
    fn who_waits_for_a_failed_reconcile_waits_since_the_first_event() {
        let queue = Queue::<Job>::default();
        queue.open([ObjectRef::new("one")].into_iter());
        let one = ObjectRef::new("one");
        let first = queue.started(&one).unwrap();
        queue.failed(one.clone(), first);
        queue.wake(one.clone());
        assert_eq!(queue.started(&one), Some(first));
        assert_eq!(queue.started(&one), None);
    }
}
