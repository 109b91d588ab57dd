//! What the watches and our own writes have shown of one kind: objects by name, and by what decisions look for.
//!
//! Two things make a plain cache wrong, and both are settled here.
//! A watch may lag behind a write of our own: the written object enters the store at once, and older events never replace it.
//! Several watches may fill one store (one for each namespace): a list of one of them only replaces what lies in its scope.
//! Resource versions of one kind are numbers that grow with every change, so "older" is a comparison of two of them.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::kubernetes::Kind;
use crate::packed::Packing;

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
pub struct Store<K: Kept>(Arc<Mutex<State>>, PhantomData<fn() -> K>);

#[derive(Default)]
struct State {
    packing: Packing,
    objects: HashMap<Name, Entry>,
    /// Names by the hash of each facet. Two facets may share a hash: what is found is looked at again.
    index: BTreeSet<(u64, Name)>,
    hasher: RandomState,
    /// Our writes that no watch has shown yet, each with its place in the order of writes.
    unseen: HashMap<Name, u64>,
    /// How many writes there were.
    writes: u64,
    /// UIDs of objects that we have deleted and that no watch has shown to be gone.
    leaving: HashSet<String>,
    /// The newest version that the watch of each scope has shown.
    newest: HashMap<String, u64>,
}

struct Entry {
    version: u64,
    packed: Box<[u8]>,
}

/// What an event of a watch tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Something has changed.
    News,
    /// What we have written ourselves, and nothing else: every change before it was shown for itself.
    Own,
    /// What is known already.
    Known,
    /// The object is gone.
    Gone,
}

/// A list under way.
pub struct Listing {
    names: HashSet<Name>,
    newest: u64,
    since: u64,
}

/// What a finished list has changed besides the objects in it.
pub struct Listed<K> {
    /// Objects that the list no longer had.
    pub gone: Vec<K>,
    /// Our writes during the list that it does not show: only the API server knows whether they still exist.
    pub doubtful: Vec<K>,
}

impl<K: Kept> Clone for Store<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<K: Kept> Default for Store<K> {
    fn default() -> Self {
        Self(Arc::default(), PhantomData)
    }
}

impl<K: Kept> Store<K> {
    /// One object.
    #[must_use]
    pub fn get(&self, reference: &ObjectRef<K>) -> Option<K> {
        let state = self.state();
        let packed = state.objects.get(&Name::of(reference))?.packed.clone();
        let packing = state.packing.clone();
        drop(state);
        Some(packing.unpack(&packed))
    }

    /// All objects.
    #[must_use]
    pub fn all(&self) -> Vec<K> {
        let state = self.state();
        let objects = state.objects.values();
        objects
            .map(|entry| state.packing.unpack(&entry.packed))
            .collect()
    }

    /// The names of all objects.
    #[must_use]
    pub fn names(&self) -> Vec<ObjectRef<K>> {
        self.state().objects.keys().map(Name::reference).collect()
    }

    /// The objects with this facet, by name.
    #[must_use]
    pub fn by(&self, facet: &Facet) -> Vec<K> {
        let state = self.state();
        let packed: Vec<_> = state
            .named(facet)
            .filter_map(|name| Some(state.objects.get(name)?.packed.clone()))
            .collect();
        let packing = state.packing.clone();
        drop(state);
        packed
            .iter()
            .map(|packed| packing.unpack(packed))
            .filter(|object: &K| object.facets().contains(facet))
            .collect()
    }

    /// The names of the objects with this facet. For waking only: once in a very long while, one too many.
    #[must_use]
    pub fn names_by(&self, facet: &Facet) -> Vec<ObjectRef<K>> {
        let state = self.state();
        state.named(facet).map(Name::reference).collect()
    }

    /// How many objects have this facet.
    #[must_use]
    pub fn count(&self, facet: &Facet) -> usize {
        self.state().named(facet).count()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state().objects.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A watch of `scope` (a namespace, or empty for all) has shown this object.
    pub fn seen(&self, scope: &str, object: &K) -> Sight {
        let mut state = self.state();
        state.advance(scope, version(object));
        state.show(object)
    }

    /// A watch of `scope` has shown that this object is gone.
    pub fn gone(&self, scope: &str, object: &K) {
        let mut state = self.state();
        state.advance(scope, version(object));
        if let Some(uid) = object.uid() {
            state.leaving.remove(&uid);
        }
        // What we have written since then is a successor.
        if !state.has_newer(object) {
            state.remove::<K>(&Name::of_object(object));
        }
    }

    /// We have written this object, and the API server answered with it.
    pub fn wrote(&self, object: &K) {
        let mut object = object.clone();
        object.strip();
        let mut state = self.state();
        if state.has_newer(&object) {
            return;
        }
        let name = Name::of_object(&object);
        // The watch is past this write and shows no such object: it is gone again.
        let is_past = state.newest_for(&object) >= version(&object);
        match state.objects.get(&name) {
            None if is_past => return,
            Some(kept) if kept.version == version(&object) => return,
            _ => {}
        }
        state.writes += 1;
        let place = state.writes;
        state.unseen.insert(name, place);
        state.put(object);
    }

    /// We have deleted this object: until a watch shows its end, it counts as leaving.
    pub fn deleted(&self, object: &K) {
        let mut state = self.state();
        let Some(kept) = state.kept::<K>(&Name::of_object(object)) else {
            return;
        };
        let Some(uid) = object.uid().filter(|uid| kept.uid().as_ref() == Some(uid)) else {
            return;
        };
        state.leaving.insert(uid);
        state.put(kept);
    }

    /// A watch begins to list its scope.
    #[must_use]
    pub fn begin_list(&self) -> Listing {
        Listing {
            names: HashSet::new(),
            newest: 0,
            since: self.state().writes,
        }
    }

    /// The list has this object.
    pub fn listed(&self, listing: &mut Listing, object: &K) -> Sight {
        let mut state = self.state();
        // The scope advances with the whole list: before, its other objects are not shown yet.
        listing.newest = listing.newest.max(version(object));
        listing.names.insert(Name::of_object(object));
        match state.show(object) {
            // A list leaves out the changes that our write came on top of.
            Sight::Own => Sight::News,
            sight => sight,
        }
    }

    /// The list of `scope` is complete. Returns what it lacks.
    pub fn finish_list(&self, scope: &str, listing: Listing) -> Listed<K> {
        let mut state = self.state();
        state.advance(scope, listing.newest);
        let newest = state.newest.get(scope).copied().unwrap_or_default();
        let lacking = state
            .objects
            .keys()
            .filter(|name| scope.is_empty() || name.namespace() == Some(scope))
            .filter(|name| !listing.names.contains(*name));
        let lacking: Vec<Name> = lacking.cloned().collect();
        let mut done = Listed {
            gone: Vec::new(),
            doubtful: Vec::new(),
        };
        for name in lacking {
            let Some(kept) = state.kept::<K>(&name) else {
                continue;
            };
            // Written before the list began, or with a version that the list is past: the list would show it.
            let is_since = |place: &u64| *place > listing.since;
            if state.unseen.get(&name).is_some_and(is_since) && version(&kept) > newest {
                done.doubtful.push(kept);
            } else {
                state.remove::<K>(&name);
                done.gone.push(kept);
            }
        }
        done
    }

    /// The API server says that a doubtful object does not exist.
    pub fn forget(&self, object: &K) {
        let mut state = self.state();
        let name = Name::of_object(object);
        let kept = state.objects.get(&name);
        if kept.is_some_and(|kept| kept.version == version(object)) {
            state.remove::<K>(&name);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole, so a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes an object that a watch shows, unless a newer one is kept.
    fn show<K: Kept>(&mut self, object: &K) -> Sight {
        // Our write came on top of it without having known it.
        if self.has_newer(object) {
            return Sight::News;
        }
        let name = Name::of_object(object);
        let was_unseen = self.unseen.remove(&name).is_some();
        let kept = self.objects.get(&name);
        if kept.is_some_and(|kept| kept.version == version(object)) {
            return if was_unseen { Sight::Own } else { Sight::Known };
        }
        self.put(object.clone());
        Sight::News
    }

    fn put<K: Kept>(&mut self, mut object: K) {
        let name = Name::of_object(&object);
        self.unindex::<K>(&name);
        if object.uid().is_some_and(|uid| self.leaving.contains(&uid)) {
            let now = Time(jiff::Timestamp::now());
            object.meta_mut().deletion_timestamp.get_or_insert(now);
        }
        for facet in object.facets() {
            self.index
                .insert((self.hasher.hash_one(facet), name.clone()));
        }
        let entry = Entry {
            version: version(&object),
            packed: self.packing.pack(&object),
        };
        self.objects.insert(name, entry);
    }

    fn remove<K: Kept>(&mut self, name: &Name) {
        self.unseen.remove(name);
        if let Some(uid) = self.kept::<K>(name).and_then(|kept| kept.uid()) {
            self.leaving.remove(&uid);
        }
        self.unindex::<K>(name);
        self.objects.remove(name);
    }

    fn unindex<K: Kept>(&mut self, name: &Name) {
        for facet in self.kept::<K>(name).iter().flat_map(Kept::facets) {
            self.index
                .remove(&(self.hasher.hash_one(facet), name.clone()));
        }
    }

    fn kept<K: Kept>(&self, name: &Name) -> Option<K> {
        let entry = self.objects.get(name)?;
        Some(self.packing.unpack(&entry.packed))
    }

    /// The names of the objects with this facet, or with one of the same hash.
    fn named(&self, facet: &Facet) -> impl Iterator<Item = &Name> {
        let hash = self.hasher.hash_one(facet);
        let from = (hash, Name::first());
        self.index
            .range(from..)
            .take_while(move |(of, _)| *of == hash)
            .map(|(_, name)| name)
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
    fn newest_for<K: Kept>(&self, object: &K) -> u64 {
        let own = object.namespace().unwrap_or_default();
        let of = |scope: &str| self.newest.get(scope).copied().unwrap_or_default();
        of("").max(of(&own))
    }

    /// Whether the store has a newer state of the object than this one.
    fn has_newer<K: Kept>(&self, object: &K) -> bool {
        let kept = self.objects.get(&Name::of_object(object));
        kept.is_some_and(|kept| kept.version > version(object))
    }
}

/// An object's name, after its namespace and a slash where it has one. A fraction of an `ObjectRef`'s size, and shared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name(Arc<str>);

impl Name {
    fn new(namespace: Option<&str>, name: &str) -> Self {
        Self(match namespace {
            Some(namespace) => format!("{namespace}/{name}").into(),
            None => name.into(),
        })
    }

    fn of<K: Kept>(reference: &ObjectRef<K>) -> Self {
        Self::new(reference.namespace.as_deref(), &reference.name)
    }

    fn of_object<K: Kept>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.as_deref(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }

    /// The one before all others.
    fn first() -> Self {
        Self("".into())
    }

    fn namespace(&self) -> Option<&str> {
        Some(self.0.split_once('/')?.0)
    }

    fn reference<K: Kept>(&self) -> ObjectRef<K> {
        match self.0.split_once('/') {
            Some((namespace, name)) => ObjectRef::new(name).within(namespace),
            None => ObjectRef::new(&self.0),
        }
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
            store.listed(&mut listing, object);
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
        store.listed(&mut listing, &job("a", "one", 5, "x"));
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
    fn a_change_that_our_write_came_on_top_of_is_news() {
        let store = Store::default();
        assert_eq!(store.seen("", &job("a", "one", 5, "x")), Sight::News);
        // Somebody wrote version 6 meanwhile.
        store.wrote(&job("a", "one", 7, "x"));
        assert_eq!(store.seen("", &job("a", "one", 6, "x")), Sight::News);
        assert_eq!(store.seen("", &job("a", "one", 7, "x")), Sight::Own);
        assert_eq!(store.seen("", &job("a", "one", 8, "x")), Sight::News);
    }

    #[test]
    fn a_list_shows_what_is_news() {
        let store = Store::default();
        store.seen("", &job("a", "one", 5, "x"));
        store.wrote(&job("a", "ours", 6, "x"));
        let mut listing = store.begin_list();
        let mut sight = |name, version| store.listed(&mut listing, &job("a", name, version, "x"));
        assert_eq!(sight("one", 5), Sight::Known);
        assert_eq!(sight("ours", 6), Sight::News);
        assert_eq!(sight("ours", 6), Sight::Known);
        assert_eq!(sight("two", 7), Sight::News);
        // Another page may hold it: the list is not past this write before it is complete.
        store.wrote(&job("a", "three", 6, "x"));
        assert_eq!(store.len(), 4);
    }
}
