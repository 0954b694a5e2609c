//! Descriptor chains that are collected for one frame: one, or several with VIRTIO_NET_F_MRG_RXBUF.

use smallvec::SmallVec;

use super::header::HEADER_SIZE;
use crate::GuestRam;
use crate::virtio::device::ProtocolViolation;
use crate::virtio::guest_buffers::{Direction, GuestBuffers, IoVecs, MAX_CHAIN_DESCRIPTORS};
use crate::virtio::queue::ActiveQueue;

/// Chains popped from the RX queue and not yet completed, as one sequence of bytes.
#[derive(Debug)]
pub struct RxChains<'m> {
    chains: SmallVec<[(u16, GuestBuffers<'m>); 1]>,
    capacity: usize,
    pieces: usize,
    full: bool,
}

impl<'m> RxChains<'m> {
    /// None yet.
    pub fn new() -> Self {
        Self { chains: SmallVec::new(), capacity: 0, pieces: 0, full: false }
    }

    /// Pops chains until they hold `want` bytes or there are no more. One at most unless `mergeable`.
    pub fn gather(
        &mut self,
        queue: &mut ActiveQueue,
        mem: &'m GuestRam,
        want: usize,
        mergeable: bool,
    ) -> Result<(), ProtocolViolation> {
        while self.capacity < want && (mergeable || self.chains.is_empty()) {
            let Some(chain) = queue.pop(mem)? else {
                return Ok(());
            };
            let head = chain.head_index();
            let buffers = GuestBuffers::collect(mem, chain, Direction::Writable)
                .map_err(|error| queue.violation(error.to_string()))?;
            if buffers.len() < HEADER_SIZE {
                let what = format!("receive buffer of {} bytes holds no header", buffers.len());
                return Err(queue.violation(what));
            }
            let pieces = self.pieces.saturating_add(buffers.piece_count());
            if pieces > MAX_CHAIN_DESCRIPTORS {
                // One system call takes no more.
                queue.undo_pop(1);
                self.full = true;
                return Ok(());
            }
            self.pieces = pieces;
            self.capacity = self.capacity.saturating_add(buffers.len());
            self.chains.push((head, buffers));
        }
        Ok(())
    }

    /// Bytes in all chains.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of chains.
    pub fn count(&self) -> u16 {
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }

    /// Whether these are all the chains that a frame can have, however many the driver adds.
    pub fn is_full(&self, queue: &ActiveQueue) -> bool {
        self.full || self.count() >= queue.size()
    }

    /// Whether there is no chain.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Appends the first `len` bytes to `vecs`.
    pub fn push_space<'a>(&self, vecs: &mut IoVecs<'a>, len: usize)
    where
        'm: 'a,
    {
        let mut left = len;
        for (_, start, buffers) in self.spans(0, len) {
            let count = buffers.len().saturating_sub(start).min(left);
            vecs.push_guest(buffers, start, count);
            left = left.saturating_sub(count);
        }
    }

    /// Copies `source` to `offset`, as far as there is room.
    pub fn copy_from(&self, offset: usize, source: &[u8]) {
        let mut rest = source;
        for (_, start, buffers) in self.spans(offset, source.len()) {
            let count = buffers.len().saturating_sub(start).min(rest.len());
            let (head, tail) = rest.split_at(count);
            buffers.copy_from(start, head);
            rest = tail;
        }
    }

    /// Copies from `offset` into `target`, as far as there are bytes.
    pub fn copy_to(&self, offset: usize, target: &mut [u8]) {
        let len = target.len();
        let mut rest = target;
        for (_, start, buffers) in self.spans(offset, len) {
            let count = buffers.len().saturating_sub(start).min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            buffers.copy_to(start, head);
            rest = tail;
        }
    }

    /// Notes that the kernel wrote `len` bytes at `offset`.
    pub fn mark_dirty(&self, offset: usize, len: usize) {
        let mut left = len;
        for (_, start, buffers) in self.spans(offset, len) {
            let count = buffers.len().saturating_sub(start).min(left);
            buffers.mark_dirty(start, count);
            left = left.saturating_sub(count);
        }
    }

    /// The chains that `len` bytes take, as head and bytes in the chain.
    pub fn completions(&self, len: usize) -> SmallVec<[(u16, u32); 4]> {
        let mut left = len;
        self.spans(0, len)
            .map(|(head, _, buffers)| {
                let count = buffers.len().min(left);
                left = left.saturating_sub(count);
                (head, u32::try_from(count).unwrap_or(u32::MAX))
            })
            .collect()
    }

    /// Gives all chains back to the queue.
    pub fn give_back(self, queue: &mut ActiveQueue) {
        queue.undo_pop(self.count());
    }

    /// The chains that hold the `len` bytes from `offset` on, each with where in it they start.
    fn spans(&self, offset: usize, len: usize) -> impl Iterator<Item = (u16, usize, &GuestBuffers<'m>)> {
        let end = offset.saturating_add(len);
        let mut position = 0usize;
        self.chains.iter().filter_map(move |(head, buffers)| {
            let chain_start = position;
            position = position.saturating_add(buffers.len());
            let start = offset.saturating_sub(chain_start);
            (chain_start < end && start < buffers.len()).then_some((*head, start, buffers))
        })
    }
}
