//! One answer in the making, as the worker keeps it: its tokens, its blocks, and what its prefix is called.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::cache::{Blocks, Digest, digest, root};
use super::guess::Guesser;
use super::logprobs::{TokenLogprobs, logprobs};
use super::pictures::{Claim, Pictures};
use super::sampler::{SampleError, Sampler};
use super::scheduler::View;
use super::sequence::Sequence;
use super::{Event, Permit, Submission};
use crate::metrics::KeyTokens;
use crate::model::{Logits, PictureFacts};
use crate::request::Sampling;
use crate::step::BLOCK_TOKENS;

/// One answer, or a prompt that several answers begin with.
pub(super) struct Active {
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_tokens: usize,
    /// Tokens whose keys and values are in `blocks` when all steps that have been planned are done. As many as `tokens` while
    /// the next token is on its way.
    pub(super) computed: usize,
    /// As many as `computed` tokens need.
    pub(super) blocks: Vec<u32>,
    pub(super) pictures: Pictures,
    root: Digest,
    /// One for each full block of `tokens`.
    digests: Vec<Digest>,
    /// So many of `blocks` have been made known.
    known: usize,
    /// Tokens of the prompt that were found in the arena.
    pub(super) cached_tokens: usize,
    pub(super) choice: usize,
    pub(super) sampler: Sampler,
    pub(super) sequence: Sequence,
    pub(super) guesser: Guesser,
    /// The other answers, until the prompt is computed.
    siblings: Vec<Sibling>,
    /// How many of the likeliest tokens are reported beside each.
    pub(super) logprobs: Option<usize>,
    prompt_logprobs: Option<PromptLogprobs>,
    pub(super) events: UnboundedSender<Result<Event, SampleError>>,
    pub(super) arrived: Instant,
    /// When the last token came.
    pub(super) last_token: Option<Instant>,
    /// Names its stay among the running: what a step brings for an earlier one is nobody's.
    pub(super) stay: u64,
    /// Whether it has been in the model.
    pub(super) admitted: bool,
    pub(super) ended: bool,
    /// Freed with the last answer.
    permit: Arc<Permit>,
}

struct Sibling {
    sampler: Sampler,
    sequence: Sequence,
}

/// Log probabilities of a prompt, collected chunk by chunk.
struct PromptLogprobs {
    top: usize,
    collected: Vec<Option<TokenLogprobs>>,
}

impl Active {
    pub(super) fn new(submission: Submission, guesses: usize, facts: Option<PictureFacts>) -> Self {
        let Submission {
            arrived,
            request,
            permit,
            events,
        } = submission;
        let sampler = |choice: usize| {
            let sampling = Sampling {
                seed: request.sampling.seed.wrapping_add(choice as u64),
                ..request.sampling.clone()
            };
            Sampler::new(sampling, &request.prompt, request.grammar.as_ref())
        };
        let siblings = (1..request.choices)
            .map(|choice| Sibling {
                sampler: sampler(choice),
                sequence: Sequence::new(request.ending.clone()),
            })
            .collect();
        let prompt_logprobs = request.prompt_logprobs.map(|top| PromptLogprobs {
            top,
            collected: vec![None],
        });
        let root = root(None, &request.salt);
        let mut active = Self {
            pictures: Pictures::new(&request.pictures, facts, &root),
            prompt_tokens: request.prompt.len(),
            computed: 0,
            blocks: Vec::new(),
            root,
            digests: Vec::new(),
            known: 0,
            cached_tokens: 0,
            choice: 0,
            sampler: sampler(0),
            sequence: Sequence::new(request.ending),
            guesser: Guesser::new(guesses),
            siblings,
            logprobs: request.logprobs,
            prompt_logprobs,
            tokens: request.prompt,
            events,
            arrived,
            last_token: None,
            stay: 0,
            admitted: false,
            ended: false,
            permit: Arc::new(permit),
        };
        active.name_blocks();
        active
    }

    /// Where its tokens are counted besides.
    pub(super) fn counted(&self) -> Option<&KeyTokens> {
        self.permit.tokens.as_ref()
    }

    /// The other answers to a prompt that has just been computed: they hold all its blocks too.
    pub(super) fn split(&mut self, blocks: &mut Blocks) -> Vec<Self> {
        let siblings = std::mem::take(&mut self.siblings);
        let split = |(index, sibling): (usize, Sibling)| {
            for block in &self.blocks {
                blocks.hold(*block);
            }
            Self {
                tokens: self.tokens.clone(),
                blocks: self.blocks.clone(),
                pictures: self.pictures.shared(blocks),
                digests: self.digests.clone(),
                choice: index + 1,
                sampler: sibling.sampler,
                sequence: sibling.sequence,
                guesser: self.guesser,
                siblings: Vec::new(),
                prompt_logprobs: None,
                events: self.events.clone(),
                permit: Arc::clone(&self.permit),
                ..*self
            }
        };
        siblings.into_iter().enumerate().map(split).collect()
    }

    /// The tokens that may come after the next one.
    pub(super) fn guess(&self) -> &[u32] {
        // One token comes anyway, and the last one needs no successor.
        let left = self.sequence.most_tokens() - self.sequence.generated();
        if self.tokens.len() - self.computed > 1 {
            return &[];
        }
        self.guesser.guess(&self.tokens, left.saturating_sub(1))
    }

    /// Whether its next token is on its way.
    fn awaits(&self) -> bool {
        self.computed == self.tokens.len()
    }

    /// Its tokens, the one on its way included.
    pub(super) fn length(&self) -> usize {
        self.tokens.len() + usize::from(self.awaits())
    }

    /// Tokens at the end that cannot be computed yet: those that wait for a picture, or one on its way that is the last or
    /// begins several answers.
    fn held_back(&self) -> usize {
        if self.awaits() {
            let ends = self.sequence.generated() + 1 >= self.sequence.most_tokens();
            return usize::from(ends || !self.siblings.is_empty());
        }
        self.pictures.held_back(self.computed, self.tokens.len())
    }

    /// What the scheduler knows of it while it runs.
    pub(super) fn view(&self, blocks: &Blocks, older: &[Self], guessed: usize) -> View {
        let shared = |block: &u32| blocks.holders(*block) > 1;
        let next = self.computed / BLOCK_TOKENS;
        let own = self.blocks.iter().filter(|block| !shared(block)).count();
        View {
            tokens: self.length(),
            computed: self.computed,
            held_back: self.held_back(),
            blocks: self.blocks.len(),
            own: own + self.pictures.own(blocks),
            idle: 0,
            pages: 0,
            copies: self.blocks.get(next).is_some_and(shared),
            follows: self.follows(self.computed, older),
            every_logit: self.wants_every_logit(),
            guessed,
        }
    }

    /// What the scheduler knows of it while it waits behind `older`, running or waiting ones.
    pub(super) fn waiting_view<'a>(
        &self,
        blocks: &Blocks,
        older: impl Iterator<Item = &'a Self> + Clone,
    ) -> View {
        let found = self.digests[..self.shareable()]
            .iter()
            .map_while(|digest| blocks.find(digest));
        let (mut count, mut idle) = (0, 0);
        for block in found {
            count += 1;
            idle += usize::from(blocks.holders(block) == 0);
        }
        let computed = count * BLOCK_TOKENS;
        let others = older.clone().map(|older| &older.pictures);
        let Claim { taken, idle: known } = self.pictures.claim(computed, blocks, others);
        View {
            tokens: self.tokens.len(),
            computed,
            // Whether its pictures are complete shows when it holds them.
            held_back: self.pictures.held_back(computed, self.tokens.len()),
            blocks: count,
            idle: idle + known,
            pages: taken,
            follows: self.follows(computed, older),
            every_logit: self.wants_every_logit(),
            ..View::default()
        }
    }

    /// Blocks that may come from others: at least one token is left, because its logits are wanted.
    fn shareable(&self) -> usize {
        if self.wants_every_logit() {
            0
        } else {
            (self.tokens.len() - 1) / BLOCK_TOKENS
        }
    }

    /// Whether an older one is about to compute the block that comes after `computed` tokens.
    fn follows<'a>(&self, computed: usize, older: impl IntoIterator<Item = &'a Self>) -> bool {
        let next = computed / BLOCK_TOKENS;
        computed.is_multiple_of(BLOCK_TOKENS)
            && next < self.shareable()
            && older.into_iter().any(|older| {
                older.digests.get(next) == self.digests.get(next) && older.computed <= computed
            })
    }

    /// Holds the blocks after its own that somebody has computed meanwhile.
    pub(super) fn share(&mut self, blocks: &mut Blocks) -> usize {
        if !self.computed.is_multiple_of(BLOCK_TOKENS) {
            return 0;
        }
        let before = self.computed;
        let shareable = self.shareable();
        while self.blocks.len() < shareable
            && let Some(block) = blocks.find(&self.digests[self.blocks.len()])
        {
            blocks.hold(block);
            self.blocks.push(block);
            self.computed += BLOCK_TOKENS;
        }
        let shared = self.computed - before;
        if self.sequence.generated() == 0 {
            self.cached_tokens += shared;
        }
        shared
    }

    /// Computes the digests of full blocks that have none yet.
    fn name_blocks(&mut self) {
        let blocks = self.tokens.chunks_exact(BLOCK_TOKENS).enumerate();
        for (index, block) in blocks.skip(self.digests.len()) {
            let parent = self.digests.last().unwrap_or(&self.root);
            let first = index * BLOCK_TOKENS;
            let pictures = self.pictures.within(first..first + BLOCK_TOKENS);
            let digest = digest(parent, block, &pictures);
            self.digests.push(digest);
        }
    }

    /// Makes known which full blocks are computed by the steps that have been planned: who shares one comes in a later step.
    pub(super) fn tell_blocks(&mut self, blocks: &mut Blocks) {
        while self.known < (self.computed / BLOCK_TOKENS).min(self.digests.len()) {
            blocks.know(self.blocks[self.known], self.digests[self.known]);
            self.known += 1;
        }
    }

    /// Names and tells what its new tokens have filled; blocks beyond the computed tokens are given back.
    pub(super) fn settle(&mut self, blocks: &mut Blocks) {
        self.name_blocks();
        self.tell_blocks(blocks);
        for block in self.blocks.drain(self.computed.div_ceil(BLOCK_TOKENS)..) {
            blocks.give(block);
        }
        self.pictures.give_passed(self.computed, blocks);
    }

    /// Gives all its blocks back.
    pub(super) fn give_blocks(&mut self, blocks: &mut Blocks) {
        blocks.give_all(&mut self.blocks);
        self.pictures.give_all(blocks);
    }

    /// Gives everything back; it is computed again later.
    pub(super) fn give_way(&mut self, blocks: &mut Blocks) {
        self.give_blocks(blocks);
        self.sampler.give_up();
        (self.computed, self.known) = (0, 0);
        if self.sequence.generated() == 0 {
            self.cached_tokens = 0;
        }
        if let Some(prompt) = &mut self.prompt_logprobs {
            prompt.collected.truncate(1);
        }
    }

    /// Whether nothing but its next token is wanted of the logits, so that whoever computes them can choose it.
    pub(super) fn wants_a_token_only(&self) -> bool {
        self.siblings.is_empty()
            && self.logprobs.is_none()
            && self.prompt_logprobs.is_none()
            && self.sequence.most_tokens() > 0
    }

    pub(super) fn wants_every_logit(&self) -> bool {
        self.prompt_logprobs.is_some()
    }

    /// Notes what the rows from `first` on say about the prompt's tokens.
    pub(super) fn note_prompt(&mut self, rows: std::ops::Range<usize>, logits: &Logits<'_>) {
        let Some(prompt) = &mut self.prompt_logprobs else {
            return;
        };
        for row in rows {
            if let Some(token) = self.tokens[..self.prompt_tokens].get(prompt.collected.len()) {
                let row = logits.row(row);
                // A picture's token is none that the model says.
                let says = (*token as usize) < row.len();
                let noted = says.then(|| logprobs(row, *token, prompt.top));
                prompt.collected.push(noted);
            }
        }
    }

    /// The prompt's log probabilities, once, when they are complete.
    pub(super) fn prompt_event(&mut self) -> Option<Event> {
        self.prompt_logprobs.take().map(|prompt| Event::Prompt {
            logprobs: prompt.collected,
        })
    }

    /// Whether the prompt is complete, for the first time, with its tokens up to `end`.
    pub(super) fn begins_answer(&self, end: usize) -> bool {
        self.sequence.generated() == 0 && end == self.prompt_tokens
    }
}
