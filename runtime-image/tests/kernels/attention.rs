//! Attention by every kernel: spans that begin and end anywhere, repeats, groups of heads, rows that see nothing.

use crate::card::{Memory, card};
use crate::numbers::{KINDS, Kind, Random};
use crate::world::{PAGE, Sights, Span, World};

/// Any keys, at times only one.
fn random_span(random: &mut Random, most: usize) -> Span {
    let end = 9 + random.below(most - 9);
    let begin = if random.below(8) == 0 {
        end - 1
    } else {
        random.below((end - 8).min(70))
    };
    let blocks = (0..end.div_ceil(PAGE))
        .map(|_| random.below(24) as u32)
        .collect();
    Span {
        blocks,
        begin,
        end,
        repeats: random.pick(&[1, 1, 3, 7]),
    }
}

/// The same without half of the keys.
fn wrong(sights: &Sights) -> Sights {
    let mut spans = sights.spans.clone();
    for span in &mut spans {
        span.end -= (span.end - span.begin) / 2;
    }
    Sights {
        spans,
        seen: sights.seen.clone(),
    }
}

fn random_sights(random: &mut Random, rows: usize, most: usize) -> Sights {
    let (mut spans, mut seen) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let count = [1, 1, 2, 3, 0][row % 5];
        let first = spans.len();
        spans.extend((0..count).map(|_| random_span(random, most)));
        let row = if row == 3 { u32::MAX } else { row as u32 };
        seen.push((row, first..spans.len(), usize::MAX));
    }
    seen.reverse();
    // Who is nobody has no result, and no numbers either.
    let nobody = seen.iter().position(|(row, ..)| *row == u32::MAX);
    let mut sights = Sights { spans, seen };
    if let Some(nobody) = nobody {
        sights.seen[nobody].1 = 0..0;
    }
    sights
}

impl Sights {
    fn of_somebody(&self) -> Self {
        let seen = self
            .seen
            .iter()
            .filter(|(row, ..)| *row != u32::MAX)
            .cloned()
            .collect();
        Self {
            spans: self.spans.clone(),
            seen,
        }
    }
}

const HEADS: [(usize, usize, usize); 8] = [
    (4, 2, 16),
    (2, 2, 80),
    (3, 3, 64),
    (8, 2, 128),
    (16, 1, 128),
    (40, 2, 16),
    (5, 1, 64),
    (6, 2, 80),
];

#[test]
fn single_rows_in_floats() {
    let mut random = Random(21);
    for (queries, keys, width) in HEADS
        .into_iter()
        .chain([(4, 2, 20), (1, 1, 256), (3, 1, 6)])
    {
        for arena in [Kind::F32, Kind::Bf16] {
            let mut world = World::random(&mut random, arena, (queries, keys, width), 5);
            let sights = random_sights(&mut random, 5, 400);
            world.spoil(&sights.of_somebody());
            let mut exact = World {
                query: world.query.clone(),
                arena: Memory::new(0),
                numbers: world.numbers.clone(),
                ..world
            };
            exact.kind = Kind::F32;
            for kind in KINDS {
                let found = card().both_ways(|| world.any(&sights, kind).read());
                exact.check(
                    "attend_any",
                    &Memory::of(&found),
                    kind,
                    &sights.of_somebody(),
                    &wrong(&sights.of_somebody()),
                );
            }
        }
    }
}

#[test]
fn single_rows_in_splits() {
    let mut random = Random(22);
    for heads in HEADS {
        let mut world = World::random(&mut random, Kind::Bf16, heads, 5);
        for most in [30, 700, 6_404] {
            let sights = random_sights(&mut random, 5, most);
            world.spoil(&sights.of_somebody());
            for kind in KINDS {
                let found = card().both_ways(|| world.split(&sights, kind, 0).read());
                world.check(
                    "attend_split",
                    &Memory::of(&found),
                    kind,
                    &sights.of_somebody(),
                    &wrong(&sights.of_somebody()),
                );
                assert_eq!(
                    found,
                    world.split(&sights, kind, 2).read(),
                    "more splits than there are pages change nothing"
                );
            }
            world = World::random(&mut random, Kind::Bf16, heads, 5);
        }
    }
}

#[test]
fn tiles_of_rows_up_to_themselves() {
    let mut random = Random(23);
    for (queries, keys, width) in HEADS {
        let most = if [64, 80].contains(&width) { 128 } else { 64 } / (queries / keys);
        for (rows, position) in [
            (1, 0),
            (most, 0),
            (most, 37),
            (most.min(5), 300),
            (most / 2 + 1, 64),
        ] {
            let mut world =
                World::random(&mut random, Kind::Bf16, (queries, keys, width), rows + 1);
            let end = position + rows;
            let blocks = (0..end.div_ceil(PAGE) + 1)
                .map(|_| random.below(24) as u32)
                .collect();
            let spans = vec![Span {
                blocks,
                begin: 0,
                end,
                repeats: 1,
            }];
            let seen = |more: usize| {
                (0..rows)
                    .map(|row| (row as u32 + 1, 0..1, position + row + more))
                    .collect()
            };
            let sights = Sights {
                spans: spans.clone(),
                seen: seen(0),
            };
            world.spoil(&sights);
            let tile = [1, rows as u32, 0, 1, 1, position as u32, 0, 0];
            for kind in KINDS {
                let found = card().both_ways(|| world.tile(&[tile], &sights, kind).read());
                let mut earlier = spans.clone();
                earlier[0].begin = end.div_ceil(4);
                let wrong = Sights {
                    spans: earlier,
                    seen: seen(0),
                };
                let what =
                    format!("attend_tile {queries} {keys} {width}, {rows} rows from {position}");
                if rows * world.queries > 1 && end > 1 {
                    world.check(&what, &Memory::of(&found), kind, &sights, &wrong);
                }
            }
        }
    }
}

#[test]
fn tiles_of_rows_that_see_spans() {
    let mut random = Random(24);
    for (queries, keys, width) in HEADS {
        let most = if [64, 80].contains(&width) { 128 } else { 64 } / (queries / keys);
        let mut world = World::random(&mut random, Kind::Bf16, (queries, keys, width), 2 * most);
        let spans: Vec<Span> = (0..5).map(|_| random_span(&mut random, 200)).collect();
        let first = most / 2 + 1;
        let seen = (0..2 * most).map(|row| match row {
            row if row < first => (row as u32, 0..1, usize::MAX),
            row if row < first + most => (row as u32, 1..5, usize::MAX),
            row => (row as u32, 0..0, usize::MAX),
        });
        let sights = Sights {
            spans,
            seen: seen.collect(),
        };
        world.spoil(&sights);
        let rest = 2 * most - first - most;
        let tiles = [
            [first as u32, most as u32, 1, 4, 0, 0, 0, 0],
            [0, first as u32, 0, 1, 0, 0, 0, 0],
            [(first + most) as u32, rest as u32, 0, 0, 0, 0, 0, 0],
        ];
        for kind in KINDS {
            let found = card().both_ways(|| world.tile(&tiles, &sights, kind).read());
            world.check(
                "attend_tile",
                &Memory::of(&found),
                kind,
                &sights,
                &wrong(&sights),
            );
        }
    }
}
