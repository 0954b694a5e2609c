use super::*;

fn second(tokens: u64) -> BucketConfig {
    BucketConfig { size: tokens, one_time_burst: 0, refill_time_ms: 1000 }
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn a_debt_is_waited_for_exactly() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(&second(1000), start).unwrap();
    assert_eq!(bucket.wait(start), Duration::ZERO);
    bucket.take(3500);
    // 2500 tokens are missing and one has to be there.
    assert_eq!(bucket.wait(start), millis(2501));
    assert_eq!(bucket.wait(start + millis(1000)), millis(1501));
    assert_eq!(bucket.wait(start + millis(2500)), millis(1));
    assert_eq!(bucket.wait(start + millis(2501)), Duration::ZERO);
}

#[test]
fn a_bucket_does_not_overflow_and_a_burst_is_spent_once() {
    let start = Instant::now();
    let config = BucketConfig { one_time_burst: 500, ..second(1000) };
    let mut bucket = TokenBucket::new(&config, start).unwrap();
    let later = start + millis(60_000);
    assert_eq!(bucket.wait(later), Duration::ZERO);
    bucket.take(1500);
    assert_eq!(bucket.wait(later), millis(1));
    // An hour later there are 1000, not 1500.
    let hour = later + millis(3_600_000);
    assert_eq!(bucket.wait(hour), Duration::ZERO);
    bucket.take(1000);
    assert_eq!(bucket.wait(hour), millis(1));
}

#[test]
fn small_steps_of_time_lose_nothing() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(&second(300), start).unwrap();
    bucket.take(300);
    let mut passed = 0;
    for step in 1..=10_000_u32 {
        let now = start + Duration::from_micros(u64::from(step) * 999);
        while bucket.wait(now).is_zero() {
            bucket.take(1);
            passed += 1;
        }
    }
    // 9.99 s at 300 a second.
    assert_eq!(passed, 2997);
}

#[test]
fn extreme_limits_do_no_harm() {
    let start = Instant::now();
    assert!(TokenBucket::new(&second(0), start).is_none());
    assert!(TokenBucket::new(&BucketConfig { refill_time_ms: 0, ..second(1) }, start).is_none());
    for (size, refill_time_ms) in [(1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
        let config = BucketConfig { size, one_time_burst: u64::MAX, refill_time_ms };
        let mut bucket = TokenBucket::new(&config, start).unwrap();
        for _ in 0..4 {
            bucket.take(u64::MAX);
            let _ = bucket.wait(start + millis(u64::from(u32::MAX)));
        }
    }
    for rate in [0, u64::MAX] {
        let bucket = BucketConfig::per_second(rate);
        assert!(bucket.size > 0 && bucket.refill_time_ms > 0, "{rate}");
    }
    for rate in [1, 3, 7, 10, 15, 19, 1234, 10_000_000] {
        let bucket = BucketConfig::per_second(rate);
        let really = bucket.size as f64 * 1000.0 / bucket.refill_time_ms as f64;
        assert!((0.97..1.03).contains(&(really / rate as f64)), "{rate}: {really}");
    }
}

#[test]
fn each_direction_counts_in_its_own_buckets_and_in_the_common_ones() {
    let one = |bytes| Rates { bandwidth: Some(second(bytes)), ops: None };
    let limits = RateLimits {
        input: one(1000),
        total: Rates { bandwidth: None, ops: Some(second(3)) },
        ..RateLimits::default()
    };
    let mut limiter = RateLimiter::new(&limits).unwrap();
    assert!(limiter.admit(Direction::Input));
    limiter.charge(Direction::Input, 5000);
    assert!(!limiter.admit(Direction::Input) && limiter.is_waiting());
    for _ in 0..2 {
        assert!(limiter.admit(Direction::Output));
        limiter.charge(Direction::Output, 1 << 40);
    }
    assert!(!limiter.admit(Direction::Output), "three operations a second");
}

#[test]
fn the_timer_fires_when_it_goes_on_and_new_limits_count_at_once() {
    let slow =
        Rates { bandwidth: None, ops: Some(BucketConfig { size: 1, one_time_burst: 0, refill_time_ms: 50 }) };
    let mut limiter = RateLimiter::new(&RateLimits { total: slow, ..RateLimits::default() }).unwrap();
    limiter.charge(Direction::Input, 0);
    assert!(!limiter.admit(Direction::Input));
    let start = Instant::now();
    wait_for(&limiter);
    assert!(start.elapsed() >= millis(40), "{:?}", start.elapsed());
    limiter.process_timer();
    assert!(limiter.admit(Direction::Input) && !limiter.is_waiting());
    limiter.charge(Direction::Input, 0);
    let never = Rates {
        ops: Some(BucketConfig { size: 1, one_time_burst: 0, refill_time_ms: 3_600_000 }),
        bandwidth: None,
    };
    limiter.control().set(RateLimits { total: never, ..RateLimits::default() });
    wait_for(&limiter);
    limiter.process_timer();
    limiter.charge(Direction::Input, 0);
    assert!(!limiter.admit(Direction::Input));
    limiter.control().set(RateLimits::default());
    wait_for(&limiter);
    limiter.process_timer();
    assert!(limiter.admit(Direction::Input));
}

fn wait_for(limiter: &RateLimiter) {
    let mut fds = [rustix::event::PollFd::new(&limiter.shared.timer, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
}

#[test]
fn new_limits_do_not_wait_for_the_old_ones() {
    let never = BucketConfig { size: 1, one_time_burst: 0, refill_time_ms: 3_600_000 };
    let never = Rates { bandwidth: None, ops: Some(never) };
    let mut limiter = RateLimiter::new(&RateLimits { total: never, ..RateLimits::default() }).unwrap();
    limiter.charge(Direction::Input, 0);
    limiter.control().set(RateLimits::default());
    // The request comes before the event loop has seen the timer.
    assert!(limiter.admit(Direction::Input) && !limiter.is_waiting());
}
