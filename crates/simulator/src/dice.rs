//! Seeded chance.
//!
//! Everything random in the simulator comes from here, so that a seed replays a run. [`Dice`] is a
//! sequence; [`mix`] is a function of its argument and serves where no sequence exists, such as the
//! fault of request number 17 or the bytes of a file.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::guid::Guid;

/// A seeded sequence of choices.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// The sequence of a seed; `stream` keeps independent uses apart.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self(generator)
    }

    /// The next sixty-four bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// An index below `bound`.
    pub(crate) fn index(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }

    /// True `per_mille` times in a thousand.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of a non-empty list.
    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        let index = self.index(list.len());
        &list[index]
    }

    /// A new row id.
    pub(crate) fn guid(&mut self) -> Guid {
        Guid::random(self.bits(), self.bits())
    }
}

/// A well-mixed function of one number (the finaliser of SplitMix64).
pub(crate) fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A well-mixed function of a text.
pub(crate) fn mix_text(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| mix(hash ^ u64::from(byte)))
}

/// The id that belongs to a name, the same in every run; metadata ids and privileges are made so.
pub(crate) fn named_guid(name: &str) -> Guid {
    let hash = mix_text(name);
    Guid::random(hash, mix(hash))
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn a_seed_replays() {
        let draw = |seed| {
            let mut dice = Dice::new(seed, 1);
            (0..8).map(|_| dice.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
