//! Keys and values in an arena, rows that look at them, and what they should see.

use half::bf16;

use crate::card::{Argument, Memory, arguments, card};
use crate::numbers::{Kind, Numbers, Random, check, pitch};

pub(crate) const PAGE: usize = 32;

#[derive(Clone)]
pub(crate) struct Span {
    pub(crate) blocks: Vec<u32>,
    pub(crate) begin: usize,
    pub(crate) end: usize,
    pub(crate) repeats: usize,
}

/// An arena with keys and values, and rows that look at it.
pub(crate) struct World {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) width: usize,
    pub(crate) kind: Kind,
    pub(crate) block: usize,
    pub(crate) layer: usize,
    pub(crate) numbers: Vec<f32>,
    pub(crate) arena: Memory<u8>,
    pub(crate) rows: usize,
    pub(crate) query: Vec<f32>,
}

/// What rows see.
pub(crate) struct Sights {
    pub(crate) spans: Vec<Span>,
    /// For each row of queries its spans and the last key that it sees; rows may be missing.
    pub(crate) seen: Vec<(u32, std::ops::Range<usize>, usize)>,
}

impl Sights {
    fn pages(&self, spans: &std::ops::Range<usize>) -> usize {
        let pages = |span: &Span| (span.end - 1) / PAGE - span.begin / PAGE + 1;
        self.spans[spans.clone()].iter().map(pages).sum()
    }
}

impl World {
    pub(crate) fn random(
        random: &mut Random,
        kind: Kind,
        (queries, keys, width): (usize, usize, usize),
        rows: usize,
    ) -> Self {
        let (blocks, layers, layer) = (24, 2, 1);
        let part = keys * PAGE * width;
        let block = layers * 2 * part;
        let numbers: Vec<f32> = random
            .numbers(blocks * block)
            .iter()
            .map(|x| kind.round(*x))
            .collect();
        let query = random
            .numbers(rows * queries * width)
            .iter()
            .map(|x| x * 2.0)
            .collect();
        let arena = Memory::of(&kind.bits(&numbers));
        Self {
            queries,
            keys,
            width,
            kind,
            block,
            layer: layer * 2 * part,
            numbers,
            arena,
            rows,
            query,
        }
    }

    /// Slots that nobody sees hold no numbers.
    pub(crate) fn spoil(&mut self, sights: &Sights) {
        let mut seen = vec![false; self.numbers.len() / self.block * PAGE];
        for (_, spans, last) in &sights.seen {
            for span in &sights.spans[spans.clone()] {
                for key in span.begin..span.end.min(last.saturating_add(1)) {
                    seen[span.blocks[key / PAGE] as usize * PAGE + key % PAGE] = true;
                }
            }
        }
        for (place, seen) in seen.iter().enumerate() {
            if !seen {
                for head in 0..2 * self.keys {
                    let at = place / PAGE * self.block
                        + self.layer
                        + (head * PAGE + place % PAGE) * self.width;
                    self.numbers[at..at + self.width].fill(f32::NAN);
                }
            }
        }
        self.arena = Memory::of(&self.kind.bits(&self.numbers));
    }

    /// By the definition; zeros for rows that see nothing, or that nobody is.
    fn expected(&self, sights: &Sights) -> Vec<f64> {
        let all = self.queries * self.width;
        let mut out = vec![0.0; self.rows * all];
        for (row, spans, last) in &sights.seen {
            let spans = &sights.spans[spans.clone()];
            for head in 0..self.queries {
                let at = *row as usize * all + head * self.width;
                self.attend(
                    head,
                    &self.query[at..at + self.width],
                    spans,
                    *last,
                    &mut out[at..at + self.width],
                );
            }
        }
        out
    }

    fn attend(&self, head: usize, query: &[f32], spans: &[Span], last: usize, out: &mut [f64]) {
        let own = head / (self.queries / self.keys);
        let mut total = 0.0;
        for span in spans {
            for key in span.begin..span.end.min(last.saturating_add(1)) {
                let at = span.blocks[key / PAGE] as usize * self.block + self.layer;
                let at = at + (own * PAGE + key % PAGE) * self.width;
                let rounded = |x: f32| {
                    f64::from(if self.kind == Kind::F32 {
                        x
                    } else {
                        bf16::from_f32(x).to_f32()
                    })
                };
                let numbers = &self.numbers[at..at + self.width];
                let score: f64 = query
                    .iter()
                    .zip(numbers)
                    .map(|(q, k)| rounded(*q) * f64::from(*k))
                    .sum();
                let weight = (score / (self.width as f64).sqrt()).exp() * span.repeats as f64;
                total += weight;
                let at = at + self.keys * PAGE * self.width;
                for (out, value) in out.iter_mut().zip(&self.numbers[at..at + self.width]) {
                    *out += weight * f64::from(*value);
                }
            }
        }
        if total > 0.0 {
            out.iter_mut().for_each(|out| *out /= total);
        }
    }

    /// Spans and their blocks as the card wants them.
    fn told(sights: &Sights) -> (Memory<u32>, Memory<u32>) {
        let (mut spans, mut blocks) = (Vec::new(), Vec::new());
        for span in &sights.spans {
            spans.extend(
                [blocks.len(), span.begin, span.end, span.repeats].map(|number| number as u32),
            );
            blocks.extend(&span.blocks);
        }
        (Memory::of(&spans), Memory::of(&blocks))
    }

    /// Entries of rows, with the numbers of their pages where those are told.
    fn seen(sights: &Sights, tells: bool) -> Memory<u32> {
        let entry = |(row, spans, _): &(u32, std::ops::Range<usize>, usize)| {
            let pages = if tells { sights.pages(spans) } else { 0 };
            [*row, spans.start as u32, spans.len() as u32, pages as u32]
        };
        Memory::of(&sights.seen.iter().flat_map(entry).collect::<Vec<u32>>())
    }

    pub(crate) fn check(
        &self,
        what: &str,
        out: &Memory<u8>,
        kind: Kind,
        sights: &Sights,
        wrong: &Sights,
    ) {
        let found = kind.rows(out, self.queries * self.width);
        // The weights of values are rounded to 8 bits on tensor cores.
        let precision = if what.contains("any") {
            2e-6
        } else {
            1.0 / 256.0
        };
        let allowed = precision + kind.precision() / 2.0;
        check(
            what,
            &found,
            &self.expected(sights),
            &self.expected(wrong),
            |_| allowed,
        );
    }

    /// An Input of zeros for the result.
    fn out(&self, kind: Kind) -> Memory<u8> {
        let numbers = self.rows * pitch(self.queries * self.width);
        Memory::of(&vec![0_u8; numbers * kind.bytes()])
    }

    /// What all kernels but the last one are told first: queries, arena, entries, and what those see.
    fn told_first(
        &self,
        query: &Memory<f32>,
        entries: &Memory<u32>,
        (spans, blocks): &(Memory<u32>, Memory<u32>),
    ) -> Vec<Argument> {
        let (queries, keys) = (self.queries, self.keys);
        arguments![query, &self.arena, entries, spans, blocks, queries, keys].to_vec()
    }

    pub(crate) fn any(&self, sights: &Sights, kind: Kind) -> Memory<u8> {
        let (told, query) = (Self::told(sights), Memory::of(&self.query));
        let (seen, out) = (Self::seen(sights, false), self.out(kind));
        let mut arguments = self.told_first(&query, &seen, &told);
        arguments.extend(arguments![self.width]);
        arguments.extend(arguments![self.block as u64, self.layer as u64]);
        arguments.extend(arguments![&out, kind as usize]);
        let name = if self.kind == Kind::F32 {
            "attend_any_f32"
        } else {
            "attend_any_bf16"
        };
        let grid = [self.queries, sights.seen.len(), 1];
        let shared = (9 * self.width + 8 * 34) * 4;
        card().launch(name, grid, 256, shared, &arguments);
        out
    }

    /// With more splits than there are pages, and then told of those.
    pub(crate) fn split(&self, sights: &Sights, kind: Kind, more: usize) -> Memory<u8> {
        let (told, query) = (Self::told(sights), Memory::of(&self.query));
        let (seen, out) = (Self::seen(sights, more > 0), self.out(kind));
        let pages = sights.seen.iter().map(|(_, spans, _)| sights.pages(spans));
        let most = pages.max().unwrap_or(0);
        let (splits, count) = (most.div_ceil(8).max(1) + more, sights.seen.len());
        let partial = Memory::<f32>::new(count * self.queries * splits * self.width);
        let sums = Memory::<f32>::new(count * self.queries * splits * 2);
        let group = self.queries / self.keys;
        let mut arguments = self.told_first(&query, &seen, &told);
        arguments.extend(arguments![self.block as u64, self.layer as u64]);
        arguments.extend(arguments![&partial, &sums]);
        let shared = 8 * 16 * 8 + 8 * group.min(16) * self.width * 4;
        let grid = [splits, self.keys * group.div_ceil(16), count];
        let name = format!("attend_split_bf16_{}", self.width);
        card().launch(&name, grid, 256, shared, &arguments);
        let mut arguments = arguments![&seen, &partial, &sums, splits].to_vec();
        arguments.extend(arguments![self.queries, self.width, &out, kind as usize]);
        let grid = [self.queries, count, 1];
        card().launch("attend_combine", grid, 128, splits * 4 + 32, &arguments);
        out
    }

    /// Rows one after the other that see the same spans, those of a causal tile up to themselves.
    pub(crate) fn tile(&self, tiles: &[[u32; 8]], sights: &Sights, kind: Kind) -> Memory<u8> {
        let (told, query) = (Self::told(sights), Memory::of(&self.query));
        let (entries, out) = (Memory::of(tiles.as_flattened()), self.out(kind));
        let mut arguments = self.told_first(&query, &entries, &told);
        arguments.extend(arguments![self.block as u64, self.layer as u64]);
        arguments.extend(arguments![&out, kind as usize]);
        let shared = match self.width {
            16 => 14_336,
            64 => 43_008,
            80 => 47_104,
            _ => 75_776,
        };
        let name = format!("attend_tile_bf16_{}", self.width);
        card().launch(&name, [tiles.len(), self.keys, 1], 128, shared, &arguments);
        out
    }
}
