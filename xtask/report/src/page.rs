//! The page: every plot, and every figure behind them.

use std::fmt::Write as _;

use crate::Suite;

const STYLE: &str = "body{font:15px/1.45 sans-serif;max-width:1010px;margin:2em auto;padding:0 1em;color:#222}\
    img{max-width:100%;border:1px solid #ddd;margin:.4em 0}table{border-collapse:collapse;font-size:13px}\
    td,th{border-bottom:1px solid #ddd;padding:.2em .6em;text-align:left}td.n{text-align:right;white-space:nowrap}";

/// The whole page.
pub(crate) fn render(suites: &[Suite]) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Weft: benchmarks</title>\
         <style>{STYLE}</style></head>\n<body>\n<h1>Benchmarks</h1>\n\
         <p>Every case beside a bare loop over the same primitive, in interleaved rounds of one run. A ratio above 1 is \
         better than the baseline. Inconclusive: the baseline differed from itself by more than half of the margin. \
         99th percentiles are reported and not judged.</p>\n<p>"
    );
    for suite in suites {
        let _ = write!(page, "<a href=\"#{0}\">{0}</a> ", escape(&suite.name));
    }
    page.push_str("</p>\n");
    for suite in suites {
        let _ = writeln!(page, "<h2 id=\"{0}\">{0}</h2>", escape(&suite.name));
        for (file, title) in &suite.plots {
            let _ = writeln!(page, "<img src=\"{}\" alt=\"{}\">", escape(file), escape(title));
        }
        page.push_str("<table><tr><th>case<th>metric<th>ours<th>baseline<th>ratio<th>95 %<th>A/A</tr>\n");
        for row in &suite.rows {
            let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.3}"));
            let interval = match (row.ci_low, row.ci_high) {
                (Some(low), Some(high)) => format!("{low:.3} … {high:.3}"),
                _ => "–".to_owned(),
            };
            let baseline = match (&row.baseline, &row.baseline_name) {
                (Some(value), Some(name)) => format!("{value:.3} ({name})"),
                (value, _) => number(*value),
            };
            let note = if row.inconclusive { " inconclusive" } else { "" };
            let _ = writeln!(
                page,
                "<tr><td>{}<td>{}<td class=\"n\">{:.3} {}<td class=\"n\">{}<td class=\"n\">{}{note}<td class=\"n\">{interval}\
                 <td class=\"n\">{}</tr>",
                escape(&row.case),
                row.metric.name(),
                row.value,
                escape(&row.unit),
                escape(&baseline),
                number(row.ratio),
                number(row.aa_ratio),
            );
        }
        page.push_str("</table>\n");
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
