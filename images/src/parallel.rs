//! Doing one thing for several items at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Calls `work` for each of `items`, at most `workers` at a time. The first failure is returned; it sets the flag
/// that `work` is given, so that the others can stop early, and no further item is begun.
pub(crate) fn for_each<T: Sync, E: Send>(
    items: &[T],
    workers: usize,
    work: impl Fn(&T, &AtomicBool) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let (next, cancelled) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failure: Mutex<Option<E>> = Mutex::new(None);
    let worker = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if cancelled.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = work(item, &cancelled) {
                cancelled.store(true, Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..workers.clamp(1, items.len().max(1)) {
            scope.spawn(worker);
        }
        worker();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        let done = Mutex::new(Vec::new());
        let items: Vec<u32> = (0..50).collect();
        for_each(&items, 4, |item, _| {
            done.lock().unwrap().push(*item);
            Ok::<(), ()>(())
        })
        .unwrap();
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, items);
    }

    #[test]
    fn the_first_failure_stops_the_rest() {
        let count = AtomicUsize::new(0);
        let result = for_each(&[1, 2, 3, 4], 1, |item, cancelled| {
            assert!(!cancelled.load(Ordering::Relaxed));
            count.fetch_add(1, Ordering::Relaxed);
            if *item == 2 { Err(*item) } else { Ok(()) }
        });
        assert_eq!((result, count.into_inner()), (Err(2), 2));
        assert_eq!(for_each(&[], 3, |(): &(), _| Err(())), Ok(()));
    }
}
