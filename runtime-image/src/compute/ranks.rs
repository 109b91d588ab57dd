//! Ranks: threads of one process that each hold a shard of a model and meet to add their parts of a result.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Where the ranks of one model meet.
pub struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
    ranks: usize,
}

struct State {
    /// What each rank brought to the present round.
    parts: Vec<Vec<f32>>,
    arrived: usize,
    leaving: usize,
    broken: bool,
}

/// One rank's seat. Dropped, it tells the others that they will not meet again.
pub struct Seat {
    meeting: Arc<Meeting>,
    rank: usize,
}

/// Seats for `ranks` ranks.
#[must_use]
pub fn seats(ranks: usize) -> Vec<Seat> {
    let meeting = Arc::new(Meeting {
        state: Mutex::new(State {
            parts: vec![Vec::new(); ranks],
            arrived: 0,
            leaving: 0,
            broken: false,
        }),
        changed: Condvar::new(),
        ranks,
    });
    (0..ranks)
        .map(|rank| Seat {
            meeting: Arc::clone(&meeting),
            rank,
        })
        .collect()
}

impl Seat {
    /// Which rank sits here, and how many there are.
    #[must_use]
    pub fn place(&self) -> (usize, usize) {
        (self.rank, self.meeting.ranks)
    }

    /// Replaces `values` by the sum of what all ranks bring; added in the order of the ranks, so each gets the same bits.
    ///
    /// # Panics
    /// When another rank is gone: the model cannot go on.
    pub fn all_reduce(&self, values: &mut [f32]) {
        let meeting = &*self.meeting;
        if meeting.ranks == 1 {
            return;
        }
        // The round before is over when everybody has left it.
        let mut state = meeting.wait(|state| state.leaving == 0);
        let part = &mut state.parts[self.rank];
        part.clear();
        part.extend_from_slice(values);
        state.arrived += 1;
        if state.arrived == meeting.ranks {
            (state.arrived, state.leaving) = (0, meeting.ranks);
            meeting.changed.notify_all();
        }
        drop(state);
        let mut state = meeting.wait(|state| state.leaving > 0);
        values.copy_from_slice(&state.parts[0]);
        for part in &state.parts[1..] {
            for (sum, value) in values.iter_mut().zip(part) {
                *sum += value;
            }
        }
        state.leaving -= 1;
        if state.leaving == 0 {
            meeting.changed.notify_all();
        }
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, ready: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !ready(&state) {
            assert!(!state.broken, "another rank of this model has stopped");
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.meeting.lock().broken = true;
        self.meeting.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_gets_the_sum_of_every_round() {
        let threads: Vec<_> = seats(3)
            .into_iter()
            .map(|seat| {
                std::thread::spawn(move || {
                    for round in 0..200_u8 {
                        let rank = seat.place().0 as f32;
                        let mut values = [rank, f32::from(round)];
                        seat.all_reduce(&mut values);
                        assert_eq!(values, [3.0, 3.0 * f32::from(round)]);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_rank_that_stops_stops_the_others() {
        let mut seats = seats(2);
        let other = seats.pop();
        let waiting = std::thread::spawn(move || seats[0].all_reduce(&mut [1.0]));
        drop(other);
        assert!(waiting.join().is_err());
    }
}
