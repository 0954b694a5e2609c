//! A figure and the samples that it comes from.

use serde::{Deserialize, Serialize};

/// Samples of one thing in one column.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    /// Every sample, in the order of measuring.
    pub samples: Vec<f64>,
    /// The middle one.
    pub median: f64,
    /// Ninety-nine of a hundred are not above it; with few samples the largest.
    pub p99: f64,
    /// Nine of ten samples lie within so much around the median; with few samples all.
    pub spread: f64,
}

impl Figure {
    /// Of at least one sample.
    pub fn of(samples: Vec<f64>) -> Option<Self> {
        let sorted = sorted(&samples)?;
        let median = middle(&sorted);
        let deviations: Vec<f64> = samples.iter().map(|sample| (sample - median).abs()).collect();
        let p99 = rank(&sorted, 0.99)?;
        let spread = rank(&self::sorted(&deviations)?, 0.9)?;
        Some(Self { samples, median, p99, spread })
    }
}

fn sorted(samples: &[f64]) -> Option<Vec<f64>> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| sample.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then_some(sorted)
}

/// The smallest sample that `share` of all are not above.
fn rank(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied()
}

fn middle(sorted: &[f64]) -> f64 {
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => at(count / 2),
        count => f64::midpoint(at(count / 2 - 1), at(count / 2)),
    }
}

/// A number with three digits that matter and a unit that fits: `1.23 k`.
pub fn short(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, " G"),
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}{suffix}")
}

/// A ratio: `2.10×`, or `1/350` where it is small.
pub fn times(ratio: f64) -> String {
    if ratio > 0.0 && ratio < 0.1 {
        format!("1/{}", short(1.0 / ratio))
    } else {
        format!("{}×", short(ratio))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_p99_and_spread_are_of_the_samples() {
        let figure = Figure::of(vec![3.0, 1.0, 2.0, 100.0]).unwrap();
        assert_eq!((figure.median, figure.p99, figure.spread), (2.5, 100.0, 97.5));
        assert_eq!(figure.samples, [3.0, 1.0, 2.0, 100.0]);
        let many = Figure::of((1..=200).map(f64::from).collect()).unwrap();
        assert_eq!((many.median, many.p99, many.spread), (100.5, 198.0, 89.5));
        assert_eq!(Figure::of(Vec::new()), None);
        assert_eq!(Figure::of(vec![f64::NAN]), None);
    }

    #[test]
    fn ratios_can_be_read() {
        assert_eq!([2.1, 0.5, 0.004].map(times), ["2.10×", "0.500×", "1/250"]);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.1234, 1.0, 12.34, 123.4, 12_345.0, 2e6, 3e9].map(short),
            ["0.123", "1.00", "12.3", "123", "12.3 k", "2.00 M", "3.00 G"]
        );
    }
}
