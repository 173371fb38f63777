//! Drawing: SVG, with axes, units and a legend in every plot.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::chart::{Bar, Chart, Kind, Line, Ratio};

const FONT: &str = "sans-serif";
const WIDTH: u32 = 980;

/// Pixels for the names of cases, of one case, and of everything above and below the cases.
const NAMES: u32 = 400;
const ROW: u32 = 34;
const FRAME: u32 = 130;

const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const BASELINE: RGBColor = RGBColor(0xb0, 0xb0, 0xb0);
const COLORS: [RGBColor; 4] =
    [OURS, RGBColor(0xd9, 0x5f, 0x02), RGBColor(0x2c, 0x8a, 0x4b), RGBColor(0x7b, 0x4f, 0xa3)];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws one plot into a file.
pub(crate) fn draw(chart: &Chart, file: &Path) -> Result<()> {
    let height = match &chart.kind {
        Kind::Lines { .. } => 480,
        Kind::Bars { bars, .. } => FRAME + ROW * bars.len() as u32,
        Kind::Ratios(ratios) => FRAME + ROW * ratios.len() as u32,
    };
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    let drawn = match &chart.kind {
        Kind::Lines { value, series } => lines(&area, &chart.title, value, series),
        Kind::Bars { value, bars: all } => bars(&area, &chart.title, value, all),
        Kind::Ratios(all) => ratios(&area, &chart.title, all),
    };
    drawn.and_then(|()| area.present()).map_err(|error| anyhow!("{error}"))
}

type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn lines(area: &Area<'_>, title: &str, value: &str, series: &[Line]) -> Drawn {
    area.fill(&WHITE)?;
    let points = || series.iter().flat_map(|line| line.points.iter().copied());
    let exponent = |size: u64| (size.max(1) as f64).log2();
    let least = points().map(|(size, _)| exponent(size)).fold(f64::MAX, f64::min);
    let most = points().map(|(size, _)| exponent(size)).fold(0.0, f64::max);
    let top = points().map(|(_, value)| value).fold(0.0, f64::max).max(1e-9) * 1.25;
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 17))
        .margin(14)
        .margin_right(34)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(least..most.max(least + 1.0), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("block size (bytes, binary units)")
        .y_desc(value)
        .x_label_formatter(&|exponent| bytes(exponent.exp2().round() as u64))
        .y_label_formatter(&|value| figure(*value))
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 15))
        .draw()?;
    let mut color = OURS;
    for (index, line) in series.iter().enumerate() {
        if !line.baseline {
            color = COLORS[series[..index].iter().filter(|line| !line.baseline).count() % COLORS.len()];
        }
        let points: Vec<_> = line.points.iter().map(|(size, value)| (exponent(*size), *value)).collect();
        let drawn = if line.baseline {
            chart.draw_series(DashedLineSeries::new(points, 6, 4, color.stroke_width(2)))?
        } else {
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(4))?
        };
        let gap = i32::from(line.baseline) * 6;
        drawn.label(&line.name).legend(move |at| {
            EmptyElement::at(at)
                + PathElement::new([(0, 0), (11 - gap / 2, 0)], color.stroke_width(2))
                + PathElement::new([(11 + gap / 2, 0), (22, 0)], color.stroke_width(2))
        });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.4))
        .label_font((FONT, 13))
        .draw()
}

fn bars(area: &Area<'_>, title: &str, value: &str, bars: &[Bar]) -> Drawn {
    let most = bars.iter().flat_map(|bar| [bar.ours, bar.baseline.unwrap_or(0.0)]).fold(0.0, f64::max);
    let mut legend = vec![("ours", OURS)];
    if bars.iter().any(|bar| bar.baseline.is_some()) {
        legend.push(("baseline", BASELINE));
    }
    let names: Vec<&str> = bars.iter().map(|bar| bar.name.as_str()).collect();
    cases(area, title, value, &names, most.max(1e-9) * 1.2, &legend, |index, at| {
        let bar = &bars[index];
        let mut parts = vec![(bar.ours, OURS)];
        parts.extend(bar.baseline.map(|value| (value, BASELINE)));
        let height = 22 / parts.len() as i32;
        for (part, (value, color)) in parts.into_iter().enumerate() {
            let ((left, middle), (right, _)) = (at(0.0), at(value));
            let top = middle - 11 + part as i32 * height;
            let corners = [(left, top), (right.max(left + 1), top + height - 1)];
            area.draw(&Rectangle::new(corners, color.filled()))?;
            let style = (FONT, 11).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(figure(value), (right + 5, top + height / 2), style))?;
        }
        Ok(())
    })
}

fn ratios(area: &Area<'_>, title: &str, ratios: &[Ratio]) -> Drawn {
    // Intervals of a noisy run can be longer than anything worth seeing: they end at the edge.
    let most = ratios.iter().map(|ratio| ratio.ratio).fold(1.0, f64::max) * 1.3;
    let names: Vec<&str> = ratios.iter().map(|ratio| ratio.name.as_str()).collect();
    let legend = [("ratio and its 95 % interval", OURS), ("inconclusive: too noisy", BASELINE)];
    let axis = "ratio to the baseline (1: equal, above: better than it)";
    cases(area, title, axis, &names, most, &legend, |index, at| {
        let ratio = &ratios[index];
        let color = if ratio.inconclusive { BASELINE } else { OURS };
        let ((one, y), (low, _), (high, _), (here, _)) =
            (at(1.0), at(ratio.low), at(ratio.high), at(ratio.ratio));
        let half = ROW as i32 / 2;
        area.draw(&PathElement::new([(one, y - half), (one, y + half)], BLACK.mix(0.5)))?;
        area.draw(&PathElement::new([(low, y), (high, y)], color.stroke_width(2)))?;
        for end in [low, high] {
            area.draw(&PathElement::new([(end, y - 5), (end, y + 5)], color.stroke_width(2)))?;
        }
        area.draw(&Circle::new((here, y), 5, color.filled()))?;
        let style = (FONT, 11).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(format!("{:.3}", ratio.ratio), (high + 8, y), style))
    })
}

/// A frame with a value axis and a line for each case; `each` draws one, told where values are in its line.
fn cases(
    area: &Area<'_>,
    title: &str,
    value: &str,
    names: &[&str],
    most: f64,
    legend: &[(&str, RGBColor)],
    mut each: impl FnMut(usize, &dyn Fn(f64) -> (i32, i32)) -> Drawn,
) -> Drawn {
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 17))
        .margin(14)
        .margin_top(10)
        .margin_right(34)
        .x_label_area_size(46)
        .y_label_area_size(NAMES)
        .build_cartesian_2d(0.0..most, 0.0..names.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_desc(value)
        .x_label_formatter(&|value| figure(*value))
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 15))
        .draw()?;
    // The first case on top.
    let middle = |index: usize| names.len() as f64 - index as f64 - 0.5;
    for (index, name) in names.iter().enumerate() {
        let at = |value: f64| chart.backend_coord(&(value.clamp(0.0, most), middle(index)));
        let (left, y) = at(0.0);
        let style = (FONT, 12).into_font().color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
        let shown = if name.is_empty() { "(the only case)" } else { name };
        area.draw(&Text::new(shorten(shown), (left - 8, y), style))?;
        each(index, &at)?;
    }
    // Under the names, beside the axis.
    let bottom = area.dim_in_pixel().1 as i32;
    for (index, (label, color)) in legend.iter().enumerate() {
        let (x, y) = (20 + index as i32 * 200, bottom - 22);
        area.draw(&Rectangle::new([(x, y - 5), (x + 16, y + 5)], color.filled()))?;
        let style = (FONT, 13).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new((*label).to_owned(), (x + 22, y), style))?;
    }
    Ok(())
}

/// As much of a case's name as there is room for.
fn shorten(name: &str) -> String {
    const MOST: usize = 62;
    if name.chars().count() <= MOST {
        return name.to_owned();
    }
    name.chars().take(MOST - 1).chain(['…']).collect()
}

/// A figure to three digits or so.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1e6 => format!("{:.1} M", value / 1e6),
        size if size >= 1e4 => format!("{:.0} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Binary units.
fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        0x400..0x10_0000 => format!("{} KiB", count >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}
