//! Plots as SVG: one bar a column, with the spread of its samples.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Report, Row};
use crate::sample::{short, times};

/// Size in CSS pixels.
const WIDTH: u32 = 640;
const BAR: u32 = 34;
const LEFT: i32 = 110;
const RIGHT: i32 = 190;

/// The plot of a row; `None` if there is nothing to draw. Text and lines take the colours of the page.
pub fn svg(report: &Report, row: &Row) -> Option<String> {
    let largest = row.figures.values().map(|figure| figure.p99.max(figure.median)).fold(0.0, f64::max);
    if largest <= 0.0 {
        return None;
    }
    let height = BAR * u32::try_from(row.figures.len()).ok()? + 10;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        let label = |anchor| ("sans-serif", 13).into_font().color(&BLACK).pos(anchor);
        let (left, right) = (Pos::new(HPos::Right, VPos::Center), Pos::new(HPos::Left, VPos::Center));
        let room = f64::from(WIDTH as i32 - LEFT - RIGHT);
        // What differs by more than a hundred could not be seen beside each other.
        let smallest = row.figures.values().map(|figure| figure.median).fold(f64::INFINITY, f64::min);
        let logarithmic = smallest > 0.0 && largest / smallest > 100.0;
        let length = |value: f64| -> i32 {
            let share = match logarithmic {
                true => (value / smallest * 2.0).ln().max(0.0) / (largest / smallest * 2.0).ln(),
                false => value / largest,
            };
            (share * room) as i32
        };
        for (index, (column, figure)) in row.figures.iter().enumerate() {
            let top = 5 + i32::try_from(index).ok()? * BAR as i32;
            let middle = top + BAR as i32 / 2;
            let color = if report.is_distorted(row, *column) {
                RGBColor(200, 120, 30)
            } else {
                RGBColor(50, 110, 180)
            };
            let end = LEFT + length(figure.median.max(0.0)).max(2);
            let bar = Rectangle::new([(LEFT, top + 6), (end, top + BAR as i32 - 6)], color.filled());
            root.draw(&bar).ok()?;
            let (low, high) = (
                figure.samples.iter().copied().fold(f64::INFINITY, f64::min).max(0.0),
                figure.samples.iter().copied().fold(0.0, f64::max),
            );
            let whisker = PathElement::new(
                [(LEFT + length(low), middle), (LEFT + length(high), middle)],
                BLACK.stroke_width(1),
            );
            root.draw(&whisker).ok()?;
            root.draw(&Text::new(column.title(), (LEFT - 8, middle), label(left))).ok()?;
            let mark = if report.is_distorted(row, *column) { " *" } else { "" };
            let ratio = row.ratio(*column).map(|ratio| format!(" ({})", times(ratio))).unwrap_or_default();
            let value = format!("{} {}{ratio}{mark}", short(figure.median), row.unit);
            root.draw(&Text::new(value, (end.max(LEFT + length(high)) + 8, middle), label(right))).ok()?;
        }
        root.present().ok()?;
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use crate::report::tests::example;

    #[test]
    fn a_row_has_a_bar_for_each_column_and_marks_what_is_distorted() {
        let report = example();
        let svg = super::svg(&report, report.row("syscall").unwrap()).unwrap();
        assert!(svg.starts_with("<svg") && svg.matches("<rect").count() == 2, "{svg}");
        assert!(svg.contains('*') && svg.contains("container"), "{svg}");
        let svg = super::svg(&report, report.row("integer").unwrap()).unwrap();
        assert!(!svg.contains('*'), "{svg}");
    }
}
