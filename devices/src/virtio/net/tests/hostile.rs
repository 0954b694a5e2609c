//! Rings that make no sense.

use super::*;

#[test]
fn random_rings_do_no_harm() {
    let mut random = Random::new(0x0fed_cba9_8765_4321);
    let (mut guest, wire, _) = wired();
    let features = guest.device.features();
    let mut outcomes = [0; 2];
    for _ in 0..5_000 {
        if guest.device.queue_states().is_empty() {
            for queue in [&mut guest.rx, &mut guest.tx] {
                queue.restart();
            }
            let without = random.below(2) << VIRTIO_NET_F_MRG_RXBUF;
            guest.activate(features & !without);
        }
        guest.rx.scribble(&mut random, 0x1_0000);
        guest.tx.scribble(&mut random, 0x1_0000);
        // A full wire is as good as another frame.
        let _ = wire.send(&with_header(&frame(random.below(3000) as usize)));
        let _ = wire.recv(&mut [0; 2000]);
        let result = guest.device.process_queue(random.below(3) as u16);
        outcomes[usize::from(result.is_ok())] += 1;
        if result.is_err() {
            guest.device.reset();
        }
    }
    assert!(outcomes.iter().all(|count| *count > 250), "{outcomes:?}");
    let delivered =
        [guest.counter(|counters| &counters.rx_frames), guest.counter(|counters| &counters.tx_frames)];
    assert!(delivered.iter().all(|count| *count > 25), "{delivered:?}");
}
