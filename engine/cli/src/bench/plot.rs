//! Throughput and latency by block size, as an SVG.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, Ranged};
use plotters::prelude::*;

use super::Outcome;
use super::measure::Stage;
use crate::units::{bytes, figures};

const SIZE: (u32, u32) = (1250, 1100);
/// Room for the legend at the right of each plot.
const LEGEND: u32 = 260;
/// Where the legend begins, and how far its rows are apart.
const LEGEND_TOP: i32 = 50;
const LEGEND_ROW: i32 = 19;
/// Around each plot.
const MARGIN: u32 = 15;
/// For the labels of the upright axis.
const Y_LABELS: u32 = 70;
const FONT: &str = "sans-serif";
/// Colours that are told apart by most people with a colour deficiency too (Okabe and Ito's palette).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

/// One line of a plot: a batch size and a number of threads.
struct Series<'a> {
    label: String,
    color: RGBColor,
    /// In ascending order of block size.
    outcomes: Vec<&'a Outcome>,
}

/// Draws all outcomes.
///
/// # Errors
/// What the drawing library says.
pub(crate) fn draw(title: &str, outcomes: &[Outcome]) -> Result<String, String> {
    let series = series(outcomes);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let drawn = || -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
            root.fill(&WHITE)?;
            let root = root.titled(title, (FONT, 24))?;
            let (top, bottom) = root.split_vertically(SIZE.1 / 2);
            throughput(&top, &series)?;
            latency(&bottom, &series)?;
            root.present()
        };
        drawn().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

fn series(outcomes: &[Outcome]) -> Vec<Series<'_>> {
    let mut all: Vec<((u64, u64), Vec<&Outcome>)> = Vec::new();
    for outcome in outcomes {
        let key = (outcome.case.batch, outcome.case.threads);
        match all.iter_mut().find(|(known, _)| *known == key) {
            Some((_, list)) => list.push(outcome),
            None => all.push((key, vec![outcome])),
        }
    }
    let mut drawn = Vec::new();
    for (index, ((batch, threads), mut outcomes)) in all.into_iter().enumerate() {
        outcomes.sort_by_key(|outcome| outcome.case.block);
        let threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        let label = format!("batch of {batch}, {threads}");
        drawn.push(Series { label, color: COLORS[index % COLORS.len()], outcomes });
    }
    drawn
}

/// Block sizes on a binary logarithmic scale: an axis of the exponents.
struct BlockSizes(Range<f64>);

impl BlockSizes {
    fn of(series: &[Series<'_>]) -> Self {
        let sizes =
            || series.iter().flat_map(|one| &one.outcomes).map(|outcome| exponent(outcome.case.block));
        let (least, most) = (sizes().fold(f64::MAX, f64::min), sizes().fold(0.0, f64::max));
        Self(least - 0.5..most + 0.5)
    }
}

fn exponent(block: u64) -> f64 {
    (block.max(1) as f64).log2()
}

impl Ranged for BlockSizes {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.0.start) / (self.0.end - self.0.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        let (first, last) = (self.0.start.ceil() as i32, self.0.end.floor() as i32);
        let step = ((last - first).max(0) as usize / hint.max_num_points().clamp(1, 16) + 1).max(1);
        (first..=last).step_by(step).map(f64::from).collect()
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

impl plotters::coord::ranged1d::ValueFormatter<f64> for BlockSizes {
    fn format_ext(&self, value: &f64) -> String {
        bytes(value.exp2().round() as u64)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn throughput(area: &Area<'_>, series: &[Series<'_>]) -> Drawn {
    let (area, beside) = area.split_horizontally(SIZE.0 - LEGEND);
    let mut entries = Vec::new();
    let values = series.iter().flat_map(|one| &one.outcomes).map(|outcome| outcome.measured.throughput());
    let most = values.fold(0.0, f64::max).max(1e-6);
    let mut chart = ChartBuilder::on(&area)
        .caption("Throughput", (FONT, 20))
        .margin(MARGIN)
        .x_label_area_size(45)
        .y_label_area_size(Y_LABELS)
        .build_cartesian_2d(BlockSizes::of(series), 0.0..most * 1.15)?;
    chart
        .configure_mesh()
        .x_desc("block size (bytes, binary units)")
        .y_desc("throughput (GB/s)")
        .x_label_formatter(&|exponent| bytes(exponent.exp2().round() as u64))
        .y_label_formatter(&|value| figures(*value))
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 15))
        .draw()?;
    for one in series {
        let point = |outcome: &&Outcome| (exponent(outcome.case.block), outcome.measured.throughput());
        let points: Vec<(f64, f64)> = one.outcomes.iter().map(point).collect();
        let color = one.color;
        chart.draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(4))?;
        entries.push(Entry { label: one.label.clone(), color, dashed: false });
    }
    legend(&beside, &entries)
}

fn latency(area: &Area<'_>, series: &[Series<'_>]) -> Drawn {
    let (area, beside) = area.split_horizontally(SIZE.0 - LEGEND);
    let mut entries = Vec::new();
    let micros =
        |outcome: &Outcome, quantile| outcome.measured.latencies.micros(Stage::Total, quantile).max(1e-3);
    let values = || {
        series
            .iter()
            .flat_map(|one| &one.outcomes)
            .flat_map(|outcome| [micros(outcome, 0.5), micros(outcome, 0.99)])
    };
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(1e-3, f64::max));
    let mut chart = ChartBuilder::on(&area)
        .caption("Latency of a batch", (FONT, 20))
        .margin(MARGIN)
        .x_label_area_size(45)
        .y_label_area_size(Y_LABELS)
        .build_cartesian_2d(BlockSizes::of(series), (least * 0.6..most * 1.6).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("block size (bytes, binary units)")
        .y_desc("latency (µs, logarithmic)")
        .x_label_formatter(&|exponent| bytes(exponent.exp2().round() as u64))
        .y_label_formatter(&|value| figures(*value))
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 15))
        .draw()?;
    for one in series {
        let points = |quantile| {
            one.outcomes
                .iter()
                .map(move |outcome| (exponent(outcome.case.block), micros(outcome, quantile)))
                .collect()
        };
        let (color, median, late): (_, Vec<_>, Vec<_>) = (one.color, points(0.5), points(0.99));
        chart.draw_series(LineSeries::new(median, color.stroke_width(2)).point_size(4))?;
        entries.push(Entry { label: format!("{}: p50", one.label), color, dashed: false });
        chart.draw_series(late.iter().map(|point| TriangleMarker::new(*point, 5, color.filled())))?;
        chart.draw_series(DashedLineSeries::new(late, 6, 4, color.stroke_width(2)))?;
        entries.push(Entry { label: format!("{}: p99", one.label), color, dashed: true });
    }
    legend(&beside, &entries)
}

/// What a line stands for.
struct Entry {
    label: String,
    color: RGBColor,
    dashed: bool,
}

/// Draws the entries below each other, at the right of a plot.
fn legend(area: &Area<'_>, entries: &[Entry]) -> Drawn {
    for (row, entry) in entries.iter().enumerate() {
        let y = LEGEND_TOP + LEGEND_ROW * row as i32;
        let pieces: &[(i32, i32)] = if entry.dashed { &[(0, 8), (14, 22)] } else { &[(0, 22)] };
        for (from, to) in pieces {
            area.draw(&PathElement::new([(*from, y), (*to, y)], entry.color.stroke_width(2)))?;
        }
        // The text hangs from its upper edge.
        area.draw(&Text::new(entry.label.clone(), (30, y - 7), (FONT, 13)))?;
    }
    Ok(())
}
