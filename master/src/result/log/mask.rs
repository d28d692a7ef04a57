//! Secrets in output are overwritten with as many `*`, so that offsets keep their meaning.
//!
//! ```text
//!  "token=hunter2-xyz ok hun"  ─►  "token=*********** ok "   and "hun" is held back: it may become a secret
//! ```
//!
//! The end of what arrived is held back as long as it may be the beginning of a secret. A stream that is taken up again
//! must begin [`Mask::overlap`] bytes before the place where the log goes on.

use aho_corasick::{AhoCorasick, BuildError};
use bytes::Bytes;
use std::ops::Range;

/// Lines of a value that is longer than a line are masked each; shorter ones are in every output.
const LEAST_LINE: usize = 6;

/// What must not be shown; made once for a job. `Debug` shows none of it.
#[derive(Clone, Default)]
pub struct Mask {
    finder: Option<AhoCorasick>,
    secrets: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mask").finish_non_exhaustive()
    }
}

impl Mask {
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Mask, BuildError> {
        let mut secrets: Vec<Vec<u8>> = Vec::new();
        for value in values {
            let lines = value
                .lines()
                .map(str::trim_end)
                .filter(|line| line.len() >= LEAST_LINE);
            for text in std::iter::once(value).chain(lines) {
                secrets.push(text.as_bytes().to_vec());
            }
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort();
        secrets.dedup();
        let finder = match secrets.is_empty() {
            true => None,
            false => Some(AhoCorasick::new(&secrets)?),
        };
        Ok(Mask { finder, secrets })
    }

    /// How many bytes before a place in the stream can matter to the ones behind it.
    pub fn overlap(&self) -> u64 {
        let longest = self.secrets.iter().map(Vec::len).max().unwrap_or(0);
        longest.saturating_sub(1) as u64
    }

    /// A whole text, masked.
    pub fn text(&self, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        self.cover(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Overwrites all secrets; returns where they were.
    fn cover(&self, bytes: &mut [u8]) -> Vec<Range<usize>> {
        let Some(finder) = &self.finder else {
            return Vec::new();
        };
        let found: Vec<Range<usize>> = finder
            .find_overlapping_iter(&*bytes)
            .map(|found| found.range())
            .collect();
        for range in &found {
            if let Some(secret) = bytes.get_mut(range.clone()) {
                secret.fill(b'*');
            }
        }
        found
    }

    /// Length of the longest end of `bytes` that a secret may begin with.
    fn open_end(&self, bytes: &[u8]) -> usize {
        let is_beginning = |end: &[u8]| {
            let longer = self
                .secrets
                .iter()
                .filter(|secret| secret.len() > end.len());
            longer.into_iter().any(|secret| secret.starts_with(end))
        };
        let most = bytes.len().min(self.overlap() as usize);
        (1..=most)
            .rev()
            .find(|length| {
                let end = bytes.get(bytes.len() - length..);
                end.is_some_and(is_beginning)
            })
            .unwrap_or(0)
    }
}

/// One stream on its way through the mask.
#[derive(Debug)]
pub struct Masking {
    mask: Mask,
    /// Not given out yet.
    held: Vec<u8>,
    /// So many of the first of them belong to a secret that began before them.
    covered: usize,
    /// Given out, or to be dropped, before the place where the reader wants to go on.
    surplus: u64,
}

impl Masking {
    /// The stream comes from `surplus` bytes before the place from which on it is wanted.
    pub fn new(mask: Mask, surplus: u64) -> Masking {
        Masking {
            mask,
            held: Vec::new(),
            covered: 0,
            surplus,
        }
    }

    /// Takes bytes in; gives out those that are sure.
    pub fn feed(&mut self, bytes: Bytes) -> Bytes {
        if self.mask.finder.is_none() && self.surplus == 0 {
            return bytes;
        }
        self.held.extend_from_slice(&bytes);
        let keep = self.mask.open_end(&self.held);
        self.give_out(keep)
    }

    /// The rest, when no more comes.
    pub fn finish(&mut self) -> Bytes {
        self.give_out(0)
    }

    fn give_out(&mut self, keep: usize) -> Bytes {
        let sure = self.held.len() - keep;
        let rest = self.held.split_off(sure);
        let mut whole = std::mem::take(&mut self.held);
        whole.extend_from_slice(&rest);
        let found = self.mask.cover(&mut whole);
        let covered = self.covered.min(whole.len());
        whole.iter_mut().take(covered).for_each(|byte| *byte = b'*');
        let reached = found
            .iter()
            .filter(|range| range.start < sure)
            .map(|range| range.end);
        self.covered = reached.max().unwrap_or(0).max(covered).saturating_sub(sure);
        whole.truncate(sure);
        self.held = rest;
        let dropped = self.surplus.min(whole.len() as u64);
        self.surplus -= dropped;
        whole.split_off(dropped as usize).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(mask: &Mask, pieces: &[&[u8]], surplus: u64) -> Vec<u8> {
        let mut masking = Masking::new(mask.clone(), surplus);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(masking.feed(Bytes::copy_from_slice(piece)));
        }
        out.extend(masking.finish());
        out
    }

    #[test]
    fn a_secret_across_pieces_is_covered_and_the_rest_arrives() {
        let mask = Mask::new(["hunter2-xyz"]).unwrap();
        let out = masked(&mask, &[b"a hunt", b"er2", b"-xyz hunter", b"3"], 0);
        assert_eq!(out, b"a *********** hunter3");
        assert_eq!(mask.text("is hunter2-xyz!"), "is ***********!");
        assert!(!format!("{mask:?}").contains("hunter"));
    }

    #[test]
    fn each_line_of_a_key_is_covered() {
        let mask = Mask::new(["-----BEGIN KEY-----\nabcdefghij\n--\n"]).unwrap();
        assert_eq!(
            masked(&mask, &[b"x abcdefghij -- y"], 0),
            b"x ********** -- y"
        );
    }

    #[test]
    fn without_secrets_nothing_is_held_back() {
        let mask = Mask::new([]).unwrap();
        assert_eq!(mask.overlap(), 0);
        let mut masking = Masking::new(mask, 0);
        assert_eq!(masking.feed(Bytes::from_static(b"all")), b"all"[..]);
    }

    proptest! {
        /// However the stream is cut, and wherever it is taken up again, it reads as if masked in one piece.
        #[test]
        fn cuts_make_no_difference(
            secrets in prop::collection::vec("[ab]{1,5}", 0..4),
            stream in "[abc]{0,60}",
            cuts in prop::collection::vec(0usize..61, 0..6),
            resume in 0usize..61,
        ) {
            let mask = Mask::new(secrets.iter().map(String::as_str)).unwrap();
            let mut expected = stream.clone().into_bytes();
            for secret in &secrets {
                for (at, _) in stream.char_indices() {
                    if stream[at..].starts_with(secret.as_str()) {
                        expected[at..at + secret.len()].fill(b'*');
                    }
                }
            }
            let bytes = stream.as_bytes();
            let resume = resume.min(bytes.len());
            let begin = resume - (mask.overlap() as usize).min(resume);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.clamp(begin, bytes.len())).collect();
            cuts.extend([begin, bytes.len()]);
            cuts.sort();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let out = masked(&mask, &pieces, (resume - begin) as u64);
            prop_assert_eq!(&out[..], &expected[resume..]);
        }
    }
}
