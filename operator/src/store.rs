//! What the watches and our own writes have shown of one kind: objects by name, and by what decisions look for.
//!
//! Two things make a plain cache wrong, and both are settled here.
//! A watch may lag behind a write of our own: the written object enters the store at once, and older events never replace it.
//! Several watches may fill one store (one for each namespace): a list of one of them only replaces what lies in its scope.
//! Resource versions of one kind are numbers that grow with every change, so "older" is a comparison of two of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::reflector::{self, ObjectRef, store::Writer};
use kube::runtime::watcher;

use crate::kubernetes::Kind;

/// Something by which objects of a namespace are found without looking at all of them: what is looked for, and its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facet {
    /// The namespace; empty for what concerns all of them.
    pub namespace: String,
    /// What is looked for: a label, or a word for a field.
    pub key: &'static str,
    /// Its value.
    pub value: String,
}

impl Facet {
    /// A facet within a namespace.
    #[must_use]
    pub fn new(namespace: &str, key: &'static str, value: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            key,
            value: value.to_owned(),
        }
    }
}

/// How a kind is kept.
pub trait Kept: Kind {
    /// Drops what no decision reads, before the object is kept.
    fn strip(&mut self);

    /// What the object can be found by, besides its name.
    fn facets(&self) -> Vec<Facet>;
}

/// Objects of one kind. Cloning gives another handle to the same store.
pub struct Store<K: Kept>(Arc<Shared<K>>);

struct Shared<K: Kept> {
    reader: reflector::Store<K>,
    state: Mutex<State<K>>,
}

struct State<K: Kept> {
    writer: Writer<K>,
    index: HashMap<Facet, HashSet<ObjectRef<K>>>,
    /// Our writes that no watch has shown yet, each with its place in the order of writes.
    unseen: HashMap<ObjectRef<K>, u64>,
    /// How many writes there were.
    writes: u64,
    /// UIDs of objects that we have deleted and that no watch has shown to be gone.
    leaving: HashSet<String>,
    /// The newest version that the watch of each scope has shown.
    newest: HashMap<String, u64>,
}

/// A list under way.
pub struct Listing<K> {
    objects: Vec<K>,
    since: u64,
}

/// What a finished list has changed besides the objects in it.
pub struct Listed<K> {
    /// Objects that the list no longer had.
    pub gone: Vec<Arc<K>>,
    /// Our writes during the list that it does not show: only the API server knows whether they still exist.
    pub doubtful: Vec<Arc<K>>,
}

impl<K: Kept> Clone for Store<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Kept> Default for Store<K> {
    fn default() -> Self {
        let mut writer = Writer::default();
        // Whether everything is listed is known to the watches; a reader never waits here.
        writer.apply_watcher_event(&watcher::Event::Init);
        writer.apply_watcher_event(&watcher::Event::InitDone);
        Self(Arc::new(Shared {
            reader: writer.as_reader(),
            state: Mutex::new(State {
                writer,
                index: HashMap::new(),
                unseen: HashMap::new(),
                writes: 0,
                leaving: HashSet::new(),
                newest: HashMap::new(),
            }),
        }))
    }
}

impl<K: Kept> Store<K> {
    /// One object.
    #[must_use]
    pub fn get(&self, reference: &ObjectRef<K>) -> Option<Arc<K>> {
        self.0.reader.get(reference)
    }

    /// All objects.
    #[must_use]
    pub fn state(&self) -> Vec<Arc<K>> {
        self.0.reader.state()
    }

    /// The objects with this facet, by name.
    #[must_use]
    pub fn by(&self, facet: &Facet) -> Vec<Arc<K>> {
        let state = self.state_of();
        let mut found: Vec<Arc<K>> = state
            .index
            .get(facet)
            .into_iter()
            .flatten()
            .filter_map(|reference| self.0.reader.get(reference))
            .collect();
        found.sort_by_cached_key(|object| (object.namespace(), object.name_any()));
        found
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.reader.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.reader.is_empty()
    }

    /// The same objects as kube's controllers read them.
    #[must_use]
    pub fn reader(&self) -> reflector::Store<K> {
        self.0.reader.clone()
    }

    /// A watch of `scope` (a namespace, or empty for all) has shown this object.
    pub fn seen(&self, scope: &str, object: &K) {
        let mut state = self.state_of();
        state.advance(scope, version(object));
        if state.is_older(&self.0.reader, object) {
            return;
        }
        state.unseen.remove(&reference(object));
        state.put(&self.0.reader, object.clone());
    }

    /// A watch of `scope` has shown that this object is gone.
    pub fn gone(&self, scope: &str, object: &K) {
        let mut state = self.state_of();
        state.advance(scope, version(object));
        if let Some(uid) = object.uid() {
            state.leaving.remove(&uid);
        }
        // What we have written since then is a successor.
        if !state.is_older(&self.0.reader, object) {
            state.remove(&self.0.reader, &reference(object));
        }
    }

    /// We have written this object, and the API server answered with it.
    pub fn wrote(&self, object: &K) {
        let mut object = object.clone();
        object.strip();
        let mut state = self.state_of();
        let name = reference(&object);
        if state.is_older(&self.0.reader, &object) {
            return;
        }
        // The watch is past this write and shows no such object: it is gone again.
        let is_past = state.newest_for(&name) >= version(&object);
        match self.0.reader.get(&name) {
            None if is_past => return,
            Some(kept) if version(&*kept) == version(&object) => return,
            _ => {}
        }
        state.writes += 1;
        let place = state.writes;
        state.unseen.insert(name, place);
        state.put(&self.0.reader, object);
    }

    /// We have deleted this object: until a watch shows its end, it counts as leaving.
    pub fn deleted(&self, object: &K) {
        let mut state = self.state_of();
        let Some(kept) = self.0.reader.get(&reference(object)) else {
            return;
        };
        let Some(uid) = object.uid().filter(|uid| kept.uid().as_ref() == Some(uid)) else {
            return;
        };
        state.leaving.insert(uid);
        state.put(&self.0.reader, Arc::unwrap_or_clone(kept));
    }

    /// A watch begins to list its scope. Its objects are kept aside until the list is complete.
    #[must_use]
    pub fn begin_list(&self) -> Listing<K> {
        Listing {
            objects: Vec::new(),
            since: self.state_of().writes,
        }
    }

    /// The list of `scope` is complete. Returns what it lacks.
    pub fn finish_list(&self, scope: &str, listing: Listing<K>) -> Listed<K> {
        let Listing { objects, since } = listing;
        let listed: HashSet<ObjectRef<K>> = objects.iter().map(reference).collect();
        for object in &objects {
            self.seen(scope, object);
        }
        let mut state = self.state_of();
        let newest = state.newest.get(scope).copied().unwrap_or_default();
        let mut done = Listed {
            gone: Vec::new(),
            doubtful: Vec::new(),
        };
        for kept in self.0.reader.state() {
            let name = reference(&*kept);
            let is_in_scope = scope.is_empty() || name.namespace.as_deref() == Some(scope);
            if !is_in_scope || listed.contains(&name) {
                continue;
            }
            // Written before the list began, or with a version that the list is past: the list would show it.
            let may_be_newer = state.unseen.get(&name).is_some_and(|place| *place > since)
                && version(&*kept) > newest;
            if may_be_newer {
                done.doubtful.push(kept);
            } else {
                state.remove(&self.0.reader, &name);
                done.gone.push(kept);
            }
        }
        done
    }

    /// The API server says that a doubtful object does not exist.
    pub fn forget(&self, object: &K) {
        let mut state = self.state_of();
        let name = reference(object);
        let is_the_same = |kept: Arc<K>| version(&*kept) == version(object);
        if self.0.reader.get(&name).is_some_and(is_the_same) {
            state.remove(&self.0.reader, &name);
        }
    }

    fn state_of(&self) -> MutexGuard<'_, State<K>> {
        // Every change leaves the state whole, so a panic elsewhere spoils nothing.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kept> Listing<K> {
    /// One more object of the list.
    pub fn push(&mut self, object: K) {
        self.objects.push(object);
    }

    /// The objects so far.
    #[must_use]
    pub fn objects(&self) -> &[K] {
        &self.objects
    }
}

impl<K: Kept> State<K> {
    fn put(&mut self, reader: &reflector::Store<K>, mut object: K) {
        let name = reference(&object);
        if let Some(old) = reader.get(&name) {
            self.unindex(&old, &name);
        }
        if object.uid().is_some_and(|uid| self.leaving.contains(&uid)) {
            let now = Time(jiff::Timestamp::now());
            object.meta_mut().deletion_timestamp.get_or_insert(now);
        }
        for facet in object.facets() {
            self.index.entry(facet).or_default().insert(name.clone());
        }
        self.writer
            .apply_watcher_event(&watcher::Event::Apply(object));
    }

    fn remove(&mut self, reader: &reflector::Store<K>, name: &ObjectRef<K>) {
        self.unseen.remove(name);
        if let Some(old) = reader.get(name) {
            if let Some(uid) = old.uid() {
                self.leaving.remove(&uid);
            }
            self.unindex(&old, name);
            self.writer
                .apply_watcher_event(&watcher::Event::Delete(Arc::unwrap_or_clone(old)));
        }
    }

    fn unindex(&mut self, old: &K, name: &ObjectRef<K>) {
        for facet in old.facets() {
            if let Some(names) = self.index.get_mut(&facet) {
                names.remove(name);
                if names.is_empty() {
                    self.index.remove(&facet);
                }
            }
        }
    }

    fn advance(&mut self, scope: &str, version: u64) {
        match self.newest.get_mut(scope) {
            Some(newest) => *newest = version.max(*newest),
            None => {
                self.newest.insert(scope.to_owned(), version);
            }
        }
    }

    /// The newest version that the watch over this object's namespace has shown.
    fn newest_for(&self, name: &ObjectRef<K>) -> u64 {
        let own = name.namespace.as_deref().unwrap_or_default();
        let of = |scope: &str| self.newest.get(scope).copied().unwrap_or_default();
        of("").max(of(own))
    }

    /// Whether the store has a newer state of the object than this one.
    fn is_older(&self, reader: &reflector::Store<K>, object: &K) -> bool {
        reader
            .get(&reference(object))
            .is_some_and(|kept| version(&*kept) > version(object))
    }
}

fn reference<K: Kept>(object: &K) -> ObjectRef<K> {
    let name = ObjectRef::new(object.meta().name.as_deref().unwrap_or_default());
    match &object.meta().namespace {
        Some(namespace) => name.within(namespace),
        None => name,
    }
}

/// The resource version as the number that it is; 0 where there is none.
fn version<K: Kept>(object: &K) -> u64 {
    let text = object.meta().resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use serde_json::json;

    use super::*;
    use crate::child::MODEL_DEPLOYMENT;

    fn job(namespace: &str, name: &str, version: u64, owner: &str) -> Job {
        serde_json::from_value(json!({"metadata": {
            "namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"),
            "resourceVersion": version.to_string(), "labels": {MODEL_DEPLOYMENT: owner},
        }}))
        .unwrap()
    }

    fn list(store: &Store<Job>, scope: &str, objects: &[Job]) -> Listed<Job> {
        let mut listing = store.begin_list();
        for object in objects {
            listing.push(object.clone());
        }
        store.finish_list(scope, listing)
    }

    fn names(store: &Store<Job>, namespace: &str, owner: &str) -> Vec<String> {
        store
            .by(&Facet::new(namespace, MODEL_DEPLOYMENT, owner))
            .iter()
            .map(|job| job.name_any())
            .collect()
    }

    #[test]
    fn children_are_found_by_their_owner_and_namespace() {
        let store = Store::default();
        for job in [
            job("a", "two", 2, "x"),
            job("a", "one", 1, "x"),
            job("b", "one", 3, "x"),
            job("a", "other", 4, "y"),
        ] {
            store.seen("", &job);
        }
        assert_eq!(names(&store, "a", "x"), ["one", "two"]);
        assert_eq!(names(&store, "b", "x"), ["one"]);
        store.seen("", &job("a", "two", 5, "y"));
        assert_eq!(names(&store, "a", "x"), ["one"]);
        assert_eq!(names(&store, "a", "y"), ["other", "two"]);
        store.gone("", &job("a", "one", 6, "x"));
        assert!(names(&store, "a", "x").is_empty());
    }

    #[test]
    fn a_list_of_one_namespace_leaves_the_others_alone() {
        let store = Store::default();
        list(
            &store,
            "a",
            &[job("a", "one", 1, "x"), job("a", "two", 2, "x")],
        );
        list(&store, "b", &[job("b", "one", 3, "x")]);
        assert_eq!(store.len(), 3);
        let listed = list(&store, "a", &[job("a", "two", 2, "x")]);
        assert_eq!(listed.gone[0].name_any(), "one");
        assert_eq!(names(&store, "a", "x"), ["two"]);
        assert_eq!(names(&store, "b", "x"), ["one"]);
        list(&store, "b", &[]);
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn a_list_of_all_namespaces_replaces_everything() {
        let store = Store::default();
        list(
            &store,
            "",
            &[job("a", "one", 1, "x"), job("b", "one", 2, "x")],
        );
        let listed = list(&store, "", &[job("b", "one", 2, "x")]);
        assert_eq!(listed.gone.len(), 1);
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn an_own_write_is_read_back_before_the_watch_shows_it() {
        let store = Store::default();
        store.seen("", &job("a", "one", 5, "x"));
        store.wrote(&job("a", "new", 7, "x"));
        store.wrote(&job("a", "one", 8, "y"));
        assert_eq!(names(&store, "a", "x"), ["new"]);
        // An event from before the write.
        store.seen("", &job("a", "one", 6, "x"));
        assert_eq!(names(&store, "a", "y"), ["one"]);
        store.seen("", &job("a", "one", 9, "x"));
        assert_eq!(names(&store, "a", "x"), ["new", "one"]);
    }

    #[test]
    fn the_answer_to_a_write_that_the_watch_has_overtaken_changes_nothing() {
        let store = Store::default();
        store.seen("", &job("a", "one", 5, "x"));
        store.seen("", &job("a", "one", 8, "y"));
        store.wrote(&job("a", "one", 6, "x"));
        assert_eq!(names(&store, "a", "y"), ["one"]);
        // Made by us with version 9, deleted by somebody with 10, and the answer comes last.
        store.seen("", &job("a", "two", 9, "x"));
        store.gone("", &job("a", "two", 10, "x"));
        store.wrote(&job("a", "two", 9, "x"));
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn the_end_of_a_predecessor_does_not_remove_what_we_wrote_since() {
        let store = Store::default();
        store.seen("", &job("a", "one", 5, "x"));
        store.wrote(&job("a", "one", 9, "x"));
        store.gone("", &job("a", "one", 7, "x"));
        assert_eq!(store.len(), 1);
        store.gone("", &job("a", "one", 10, "x"));
        assert!(store.is_empty());
    }

    #[test]
    fn a_list_from_before_a_write_does_not_drop_it_and_says_so() {
        let store = Store::default();
        store.wrote(&job("a", "old", 3, "x"));
        let mut listing = store.begin_list();
        listing.push(job("a", "one", 5, "x"));
        store.wrote(&job("a", "new", 9, "x"));
        let listed = store.finish_list("", listing);
        assert_eq!(listed.gone[0].name_any(), "old");
        assert_eq!(listed.doubtful[0].name_any(), "new");
        assert_eq!(names(&store, "a", "x"), ["new", "one"]);
        store.forget(&listed.doubtful[0]);
        assert_eq!(names(&store, "a", "x"), ["one"]);
    }

    #[test]
    fn an_object_that_we_deleted_is_leaving_whatever_older_events_say() {
        let store = Store::default();
        store.seen("", &job("a", "one", 5, "x"));
        store.deleted(&job("a", "one", 5, "x"));
        store.seen("", &job("a", "one", 6, "x"));
        let kept = store.get(&ObjectRef::new("one").within("a")).unwrap();
        assert!(kept.metadata.deletion_timestamp.is_some());
        store.gone("", &job("a", "one", 7, "x"));
        assert!(store.is_empty());
    }

    #[test]
    fn ten_thousand_owners_are_looked_up_without_looking_at_all() {
        let store = Store::default();
        for number in 0..10_000 {
            let name = format!("j{number}");
            store.seen("", &job("a", &name, number + 1, &name));
        }
        let start = std::time::Instant::now();
        for number in 0..10_000 {
            let name = format!("j{number}");
            assert_eq!(names(&store, "a", &name).len(), 1);
        }
        // A scan for each would be 100 million comparisons, which take minutes in a debug build.
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}
