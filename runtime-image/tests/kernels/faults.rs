//! What the host that plays the card tells of wrong launches.

use crate::card::{Memory, arguments, card};

#[test]
fn wrong_launches_are_told() {
    let x = Memory::of(&[1.0_f32; 64]);
    let out = Memory::<f32>::new(64);
    let feed = arguments![&x, &out, 0_usize, 64_usize];
    let outcome =
        |name: &str, grid, threads, shared| card().outcome(name, grid, threads, shared, &feed);
    assert_eq!(
        outcome("fed", [1, 1, 1], 256, 0),
        (1, "no kernel is called fed".to_owned())
    );
    for (grid, threads, shared) in [
        ([0, 1, 1], 256, 0),
        ([1, 1, 1], 512, 0),
        ([1, 1, 1], 40, 0),
        ([1, 1, 1], 256, 1 << 20),
    ] {
        let (status, error) = outcome("feed", grid, threads, shared);
        assert!(status == 2 && error.contains("no launch of"), "{error}");
    }
    assert_eq!(outcome("feed", [1, 1, 1], 256, 0).0, 0);
    // A second row is behind the end.
    let (status, error) = outcome("feed", [1, 2, 1], 256, 0);
    assert!(
        status == 3 && error == "block 0 1 0, thread 0 touches memory that is not its own",
        "{error}"
    );
}

#[test]
fn too_little_shared_memory_is_told() {
    let (x, weight) = (Memory::of(&[1.0_f32; 64]), Memory::of(&[1.0_f32; 64]));
    let out = Memory::<f32>::new(64);
    let arguments = arguments![&x, (), &weight, 1e-5_f32, &out, 0_usize, 64_usize];
    let (status, error) = card().outcome("rms_norm", [1, 1, 1], 256, 16, &arguments);
    assert!(status == 3 && error.contains("touches memory"), "{error}");
    assert_eq!(
        card().outcome("rms_norm", [1, 1, 1], 256, 32, &arguments).0,
        0
    );
}

#[test]
fn kernels_that_are_wrong_are_told() {
    let out = Memory::<f32>::new(64);
    let outcome = |name: &str| card().outcome(name, [1, 1, 1], 64, 256, &arguments![&out]);
    let (status, error) = outcome("wrong_barrier");
    assert!(
        status == 3 && error.contains("40 of 64 threads wait at a barrier, 24 have ended"),
        "{error}"
    );
    let (status, error) = outcome("wrong_lanes");
    assert!(
        status == 3 && error.contains("the lanes of a warp went different ways"),
        "{error}"
    );
    let (status, error) = outcome("wrong_address");
    assert!(
        status == 3 && error.contains("thread 0 reads or writes at once what does not lie so"),
        "{error}"
    );
    // Shared memory holds no numbers before it is written.
    assert_eq!(outcome("wrong_order").0, 0);
    let found = out.read();
    assert!(found[0].is_nan() && found[63] == 0.0);
}

#[test]
fn copies_that_nobody_waits_for_are_told() {
    let from = Memory::of(&[2.0_f32; 64]);
    let outcome = |name: &str, bytes: usize| {
        let out = Memory::<f32>::new(32);
        let arguments = arguments![&from, bytes, &out];
        let (status, error) = card().outcome(name, [1, 1, 1], 32, 512, &arguments);
        (status, error, out.read())
    };
    assert_eq!(outcome("right_wait", 16), (0, String::new(), vec![2.0; 32]));
    let (status, _, found) = outcome("wrong_wait", 16);
    assert!(status == 0 && found.iter().all(|number| number.is_nan()));
    let (status, error, _) = outcome("right_wait", 4);
    assert!(
        status == 3 && error.contains("reads or writes at once what does not lie so"),
        "{error}"
    );
    let (status, error) = card().outcome("wrong_end", [1, 1, 1], 32, 512, &arguments![&from]);
    assert!(
        status == 3 && error.contains("it ends while copies are under way"),
        "{error}"
    );
}

#[test]
#[should_panic(expected = "the order of the threads shows in the result")]
fn a_missing_barrier_shows_when_threads_run_the_other_way_round() {
    card().both_ways(|| {
        let out = Memory::<f32>::new(64);
        card().launch("wrong_order", [1, 1, 1], 64, 256, &arguments![&out]);
        out.read()
            .iter()
            .map(|number| number.to_bits())
            .collect::<Vec<u32>>()
    });
}
