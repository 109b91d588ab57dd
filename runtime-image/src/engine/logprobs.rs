//! Log probabilities of tokens, from the logits as the model gave them: before bias, penalties and temperature.

/// One token with its log probability and its rivals'.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its place among all tokens; the likeliest has 1.
    pub rank: usize,
    /// The likeliest tokens with their log probabilities, the likeliest first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// The log probability of `token` and of the `top` likeliest tokens.
#[must_use]
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let largest = logits
        .iter()
        .fold(f32::NEG_INFINITY, |largest, logit| largest.max(*logit));
    let total: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - largest).exp())
        .sum();
    let base = f64::from(largest) + total.ln();
    let of = |logit: f32| (f64::from(logit) - base) as f32;
    let own = logits
        .get(token as usize)
        .copied()
        .unwrap_or(f32::NEG_INFINITY);
    let mut order: Vec<u32> = (0_u32..).take(logits.len()).collect();
    let by_logit = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    };
    let top = top.min(order.len());
    if top > 0 && top < order.len() {
        order.select_nth_unstable_by(top - 1, by_logit);
    }
    order.truncate(top);
    order.sort_unstable_by(by_logit);
    TokenLogprobs {
        token,
        logprob: of(own),
        rank: 1 + logits.iter().filter(|logit| **logit > own).count(),
        top: order
            .into_iter()
            .map(|token| (token, of(logits[token as usize])))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_the_likeliest_come_first() {
        let logits = [0.0, 3.0, -1.0, 3.0, 1.0];
        let all = logprobs(&logits, 4, 5);
        let sum: f64 = all.top.iter().map(|(_, log)| f64::from(*log).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        let order: Vec<u32> = all.top.iter().map(|(token, _)| *token).collect();
        assert_eq!((order, all.rank), (vec![1, 3, 4, 0, 2], 3));
        assert_eq!(logprobs(&logits, 1, 2).top, all.top[..2]);
        assert_eq!(
            logprobs(&logits, 1, 0).logprob.to_bits(),
            all.top[0].1.to_bits()
        );
    }
}
