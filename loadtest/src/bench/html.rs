//! The report as one HTML file: charts drawn as SVG, and below them the tables of the Markdown. Nothing is loaded from elsewhere.

use super::bars::{BARS, Limit};
use super::figure::{Figure, Metric, number};
use super::markdown;
use super::plot::Lines;
use super::report::Report;
use super::scenario::Section;
use super::subject::Name;

/// Geometry of a chart, in pixels.
const LABELS: f64 = 230.0;
const PLOT: f64 = 560.0;
const BAR: f64 = 11.0;
const GAP: f64 = 12.0;
const TOP: f64 = 26.0;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;color:#1c2430;background:#fff;max-width:1180px;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:.8em 0 1.6em}td,th{border:1px solid #d5dbe3;padding:.25em .6em;text-align:right}\
td:first-child,th:first-child{text-align:left}tr:nth-child(even) td{background:#f6f8fa}svg{display:block;margin:.4em 0 1.4em}\
svg text{font:12px system-ui,sans-serif;fill:#1c2430}.note{color:#5b6675}.missed{color:#b42318;font-weight:600}.held{color:#1a7f4b}";

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Shika beside Envoy</title><style>{STYLE}</style>\
         <h1>Shika beside Envoy</h1><p class=\"note\">Medians over rounds that alternate between the proxies; whiskers from the \
         smallest to the largest round; a black line is a bar that Shika is to stay left of.</p>\n"
    );
    for (section, title) in [
        (Section::Requests, "CPU time per request, Envoy = 1"),
        (Section::Variations, "CPU time per request, Envoy = 1: sizes, connections, protocols"),
    ] {
        text.push_str(&ratios(report, &report.of_section(section), Metric::Cpu, title));
    }
    text.push_str(&latencies(report));
    text.push_str(&growth(report));
    text.push_str(&table_of(&markdown::render(report)));
    text.push_str("</html>\n");
    text
}

/// A chart of percentiles for each fixed rate.
fn latencies(report: &Report) -> String {
    let metrics = [Metric::P50, Metric::P90, Metric::P99, Metric::P999];
    let names = report.of_section(Section::Latency);
    let subjects = report.subjects(&names);
    let charts: String = names
        .iter()
        .map(|name| {
            let figures = |subject| metrics.iter().map(|metric| report.figure(name, subject, *metric)).collect();
            let lines = Lines {
                title: format!("{name}: percentiles of latency, µs"),
                points: metrics.iter().map(|metric| metric.label().replace(" µs", "")).collect(),
                series: subjects.iter().map(|subject| (*subject, figures(*subject))).collect(),
                limit: None,
            };
            lines.svg()
        })
        .collect();
    if charts.is_empty() { charts } else { format!("<h2>Latency</h2>{}{charts}", legend(&subjects)) }
}

/// A chart over the numbers of clusters for each figure that grows with them, or is not to.
fn growth(report: &Report) -> String {
    let names = report.of_section(Section::Clusters);
    let subjects = report.subjects(&names);
    let metrics =
        [Metric::Start, Metric::IdleMemory, Metric::ScrapeAll, Metric::ScrapeUsed, Metric::Update, Metric::Growth];
    let charts: String = metrics
        .iter()
        .map(|metric| {
            let figures = |subject| names.iter().map(|name| report.figure(name, subject, *metric)).collect();
            let last = names.last().copied().unwrap_or_default();
            let lines = Lines {
                title: format!("{} by number of clusters", metric.label()),
                points: names.iter().map(|name| name.trim_start_matches("clusters_").to_owned()).collect(),
                series: subjects.iter().map(|subject| (*subject, figures(*subject))).collect(),
                limit: BARS.iter().find_map(|bar| match bar.limit {
                    Limit::AtMost(most) if bar.scenario == last && bar.metric == *metric => Some(most),
                    _ => None,
                }),
            };
            // A limit alone is no measurement.
            if lines.series.iter().all(|(_, figures)| figures.iter().all(Option::is_none)) {
                String::new()
            } else {
                lines.svg()
            }
        })
        .collect();
    if charts.is_empty() { charts } else { format!("<h2>Clusters</h2>{}{charts}", legend(&subjects)) }
}

/// Each subject has one everywhere.
pub fn color(subject: Name) -> &'static str {
    match subject {
        Name::Envoy => "#8a94a3",
        Name::Shika => "#1f6feb",
        Name::Haproxy => "#c58b1a",
        Name::Nginx => "#3a9a5c",
    }
}

/// One chart: for each scenario a bar for each subject, as a fraction of Envoy's median.
fn ratios(report: &Report, scenarios: &[&str], metric: Metric, title: &str) -> String {
    let subjects = report.subjects(scenarios);
    let mut rows = Vec::new();
    for scenario in scenarios {
        let Some(envoy) = report.figure(scenario, Name::Envoy, metric).filter(|figure| figure.median > 0.0) else {
            continue;
        };
        let bars: Vec<(Name, Figure, Figure)> = subjects
            .iter()
            .filter_map(|subject| Some((*subject, report.figure(scenario, *subject, metric)?)))
            .map(|(subject, figure)| (subject, figure, scaled(figure, 1.0 / envoy.median)))
            .collect();
        rows.push((*scenario, bars));
    }
    if rows.is_empty() {
        return String::new();
    }
    let all = rows.iter().flat_map(|(_, bars)| bars.iter().map(|(_, _, ratio)| ratio.max));
    let most = all.fold(1.0, f64::max).clamp(1.0, 3.0);
    let height: f64 = TOP + rows.iter().map(|(_, bars)| bars.len() as f64 * BAR + GAP).sum::<f64>() + 22.0;
    let mut svg = format!(
        "<h2>{title}</h2>{}<svg width=\"{}\" height=\"{height}\" role=\"img\">",
        legend(&subjects),
        LABELS + PLOT + 170.0
    );
    svg.push_str(&grid(most, height));
    let mut y = TOP;
    for (scenario, bars) in &rows {
        let tall = bars.len() as f64 * BAR;
        svg.push_str(&format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            y + tall / 2.0 + 4.0,
            escape(scenario)
        ));
        for (at, (subject, figure, ratio)) in bars.iter().enumerate() {
            svg.push_str(&one_bar(y + at as f64 * BAR, *subject, figure, ratio, most));
        }
        for limit in limits(scenario, metric) {
            let x = place(limit, most);
            svg.push_str(&format!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#000\" stroke-width=\"2\"/>",
                y - 2.0,
                y + tall + 2.0
            ));
        }
        y += tall + GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Fractions of Envoy's median that Shika may take.
fn limits(scenario: &str, metric: Metric) -> impl Iterator<Item = f64> {
    BARS.iter().filter(move |bar| bar.scenario == scenario && bar.metric == metric).filter_map(|bar| match bar.limit {
        Limit::OfEnvoy(most) => Some(most),
        Limit::OfBetterPeer(_) | Limit::AtMost(_) | Limit::OfScenario(..) => None,
    })
}

fn one_bar(y: f64, subject: Name, figure: &Figure, ratio: &Figure, most: f64) -> String {
    let (end, low, high) = (place(ratio.median, most), place(ratio.min, most), place(ratio.max, most));
    let (middle, fill) = (y + BAR / 2.0 - 0.5, color(subject));
    format!(
        "<g><title>{subject}: {} = {} of Envoy</title>\
         <rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>\
         <line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#1c2430\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" style=\"font-size:10px\">{} · {}</text></g>",
        figure.shown(),
        number(ratio.median),
        end - LABELS,
        BAR - 1.0,
        high.max(end) + 5.0,
        y + BAR - 2.0,
        number(figure.median),
        number(ratio.median)
    )
}

/// Where a fraction lies on the axis; what is beyond it lies at its end.
fn place(value: f64, most: f64) -> f64 {
    LABELS + PLOT * (value / most).clamp(0.0, 1.0)
}

fn grid(most: f64, height: f64) -> String {
    let mut lines = String::new();
    let mut at = 0.0;
    while at <= most + 1e-9 {
        let x = place(at, most);
        lines.push_str(&format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#e3e8ee\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.1}</text>",
            height - 20.0,
            height - 6.0
        ));
        at += 0.2;
    }
    lines
}

fn legend(subjects: &[Name]) -> String {
    let shown: Vec<String> = subjects
        .iter()
        .map(|subject| format!("<span style=\"color:{}\">■</span> {subject}", color(*subject)))
        .collect();
    format!("<p class=\"note\">{}</p>", shown.join(" &nbsp; "))
}

fn scaled(figure: Figure, factor: f64) -> Figure {
    Figure { median: figure.median * factor, min: figure.min * factor, max: figure.max * factor }
}

/// The Markdown's headings, tables and lists as HTML: its own dialect, so a few lines do.
fn table_of(markdown: &str) -> String {
    let mut html = String::new();
    let mut in_table = false;
    for line in markdown.lines() {
        if let Some(row) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) {
            if row.starts_with("---") {
                continue;
            }
            let cell = if in_table { "td" } else { "th" };
            if !in_table {
                html.push_str("<table>");
                in_table = true;
            }
            let cells: String = row.split('|').map(|text| format!("<{cell}>{}</{cell}>", inline(text))).collect();
            html.push_str(&format!("<tr>{cells}</tr>\n"));
            continue;
        }
        if in_table {
            html.push_str("</table>\n");
            in_table = false;
        }
        if let Some(title) = line.strip_prefix("## ") {
            html.push_str(&format!("<h2>{}</h2>\n", inline(title)));
        } else if let Some(item) = line.strip_prefix("- ") {
            html.push_str(&format!("<p class=\"note\">{}</p>\n", inline(item)));
        }
    }
    if in_table {
        html.push_str("</table>\n");
    }
    html
}

fn inline(text: &str) -> String {
    escape(text.trim())
        .replace("**missed**", "<span class=\"missed\">missed</span>")
        .replace(": held", ": <span class=\"held\">held</span>")
        .replace("**", "")
}

/// Text as text.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_become_tables_and_text_is_escaped() {
        let html = table_of("## A <b>\n\n| x | y |\n|---|---|\n| 1 & 2 | ≤ 0.5: **missed** |\n\n- void: z\n");
        assert_eq!(
            html,
            "<h2>A &lt;b&gt;</h2>\n<table><tr><th>x</th><th>y</th></tr>\n<tr><td>1 &amp; 2</td>\
             <td>≤ 0.5: <span class=\"missed\">missed</span></td></tr>\n</table>\n<p class=\"note\">void: z</p>\n"
        );
    }

    #[test]
    fn a_value_beyond_the_axis_lies_at_its_end() {
        assert_eq!(place(0.0, 1.0), LABELS);
        assert_eq!(place(0.5, 1.0), LABELS + PLOT / 2.0);
        assert_eq!(place(9.0, 1.0), LABELS + PLOT);
    }
}
