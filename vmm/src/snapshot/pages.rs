//! A set of guest pages, numbered as they lie in a memory file.

use std::ops::Range;

/// Bytes of a page.
pub const PAGE: usize = 4096;
const BITS: usize = u64::BITS as usize;

/// One bit a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet(Vec<u64>);

impl PageSet {
    /// No page yet of `count` possible ones.
    pub fn new(count: usize) -> Self {
        PageSet(vec![0; count.div_ceil(BITS)])
    }

    /// The set of words that were read one region after the other; every region has a multiple of 64 pages.
    pub fn from_words(words: Vec<u64>) -> Self {
        PageSet(words)
    }

    /// Adds pages; `None` if there are none with these numbers.
    pub fn insert(&mut self, pages: Range<usize>) -> Option<()> {
        if pages.start >= pages.end || pages.end > self.0.len() * BITS {
            return None;
        }
        for page in pages {
            *self.0.get_mut(page / BITS)? |= 1 << (page % BITS);
        }
        Some(())
    }

    /// Adds the pages of `other`, a set of the same memory.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Takes all pages out.
    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// How many pages there are.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Pages next to each other, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.find(at, |word| word)?;
            // The end of memory ends a run too.
            let end = self.find(start, |word| !word).unwrap_or(self.0.len() * BITS);
            at = end;
            Some(start..end)
        })
    }

    /// The first page from `from` on whose bit is set after `view` changed its word.
    fn find(&self, from: usize, view: impl Fn(u64) -> u64) -> Option<usize> {
        let first = from / BITS;
        (first..self.0.len()).find_map(|index| {
            let mask = if index == first { u64::MAX << (from % BITS) } else { u64::MAX };
            let word = view(*self.0.get(index)?) & mask;
            (word != 0).then(|| index * BITS + word.trailing_zeros() as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_at_words_and_at_the_end_of_memory() {
        let set = PageSet::from_words(vec![0b1011, 0, u64::MAX << 63, 1, u64::MAX]);
        assert_eq!(set.runs().collect::<Vec<_>>(), [0..2, 3..4, 191..193, 256..320]);
        assert_eq!(set.count(), 3 + 1 + 1 + 64);
        assert_eq!(PageSet::new(1000).runs().next(), None);
        assert_eq!(PageSet::from_words(vec![u64::MAX; 2]).runs().next(), Some(0..128));
    }

    #[test]
    fn only_pages_of_the_memory_can_be_added() {
        let mut set = PageSet::new(128);
        assert_eq!(set.insert(60..70), Some(()));
        assert_eq!(set.runs().next(), Some(60..70));
        assert_eq!((set.insert(127..129), set.insert(5..5)), (None, None));
    }

    #[test]
    fn a_merged_set_has_the_pages_of_both() {
        let mut set = PageSet::from_words(vec![1, 2]);
        set.merge(&PageSet::from_words(vec![2, 2]));
        assert_eq!(set.runs().collect::<Vec<_>>(), [0..2, 65..66]);
        set.clear();
        assert_eq!(set, PageSet::new(128));
    }
}
