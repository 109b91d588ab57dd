//! Memory that is short for a moment, and a model that cannot be loaded.

use std::collections::HashMap;
use std::sync::Arc;

use chandler_runtime::compute::backend::{Backend, Fault, Heads, Rotation};
use chandler_runtime::compute::cuda::Cuda;
use chandler_runtime::compute::cuda::card::Card;
use chandler_runtime::compute::cuda::matrix::Floats;
use chandler_runtime::compute::tensor::{Kind, Tensor};
use chandler_runtime::compute::vision::{Look, Span, Step, Vision};
use chandler_runtime::model::{self, Capacity};
use chandler_runtime::step::StepPlan;
use chandler_runtime::weights::folder;
use safetensors::SafeTensors;

use crate::golden::fixture;
use crate::{MEMORY, card, settings};

#[test]
fn what_rows_see_is_brought_again_where_there_was_no_memory_for_it() {
    let card = card();
    let mut backend = Cuda::new(Arc::new(card.clone()), settings(Floats::F32)).unwrap();
    let heads = Heads {
        queries: 2,
        keys: 1,
        width: 16,
        layers: 1,
    };
    let (rows, width) = (4, heads.queries * heads.width);
    let (arena, query) = (backend.arena(2, heads), backend.rows(rows, width));
    let mut out = backend.input(rows, width);
    let tensor = Tensor::new(Kind::F32, 1, 8, vec![0; 32]).unwrap();
    let feeds = backend.matrix(&tensor).unwrap();
    let span = Span {
        blocks: vec![1, 0],
        keys: 3..40,
        repeats: 1,
    };
    let look = Look {
        rows: 0..rows,
        spans: vec![span],
    };
    let looks = [(0, vec![look])];
    let rotation = Rotation {
        cosines: Vec::new(),
        sines: Vec::new(),
        pairs: 0,
        neighbours: false,
    };
    let step = Step {
        plan: &StepPlan::default(),
        rotation: &rotation,
        heads,
        sighted: &[],
        wanted: &[],
        looks: &looks,
        open: &[],
        whole: false,
    };
    card.resize(0);
    backend.begin(&step);
    assert!(matches!(backend.fault(), Some(Fault::Memory(_))));
    card.resize(MEMORY);
    backend.begin(&step);
    backend.look(heads, 0, &looks[0].1, &query, &arena, &feeds, &mut out);
    let found = backend.read_input(rows, &out).to_vec();
    assert_eq!(backend.fault(), None);
    assert!(found.iter().all(|number| *number == 0.0), "{found:?}");
}

#[test]
fn nothing_is_read_any_more_once_a_model_cannot_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("model")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    // The last tensor that is asked for is missing.
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut kept: HashMap<_, _> = tensors.tensors().into_iter().collect();
    assert!(kept.remove("model.norm.weight").is_some());
    std::fs::write(&path, safetensors::serialize(kept, None).unwrap()).unwrap();
    let card: Arc<dyn Card> = Arc::new(card());
    for _ in 0..20 {
        let mut weights = folder::open(folder.path()).unwrap().weights;
        let capacity = Capacity {
            rows: 8,
            logits_rows: 8,
            blocks: 4,
        };
        let settings = settings(Floats::Bf16);
        let room = &mut |_| Ok(capacity.blocks);
        let loaded = model::load_on(
            Arc::clone(&card),
            settings,
            weights.as_mut(),
            capacity,
            room,
        );
        assert!(loaded.is_err());
        // Threads that read would have it too.
        assert_eq!(Arc::strong_count(&card), 1);
    }
}
