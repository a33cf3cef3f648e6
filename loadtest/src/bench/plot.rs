//! Lines over a few named points, on a logarithmic scale, as SVG.

use super::figure::{Figure, number};
use super::html::{color, escape};
use super::subject::Name;

/// Geometry, in pixels.
const WIDTH: f64 = 540.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 30.0;

/// A chart of one figure.
pub struct Lines {
    /// What it shows.
    pub title: String,
    /// Names of the points from left to right.
    pub points: Vec<String>,
    /// Each subject's figures at the points.
    pub series: Vec<(Name, Vec<Option<Figure>>)>,
    /// A limit at the last point.
    pub limit: Option<f64>,
}

impl Lines {
    /// The chart; nothing when there is nothing to show.
    pub fn svg(&self) -> String {
        let values = self.series.iter().flat_map(|(_, figures)| figures.iter().flatten());
        let positive = |value: &f64| *value > 0.0;
        let all: Vec<f64> =
            values.flat_map(|figure| [figure.min, figure.max]).chain(self.limit).filter(positive).collect();
        let (Some(least), Some(most)) =
            (all.iter().copied().min_by(f64::total_cmp), all.iter().copied().max_by(f64::total_cmp))
        else {
            return String::new();
        };
        let scale = Scale::around(least, most);
        let mut svg = format!(
            "<svg width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" style=\"display:inline-block\">\
             <text x=\"{LEFT}\" y=\"16\" style=\"font-weight:600\">{}</text>",
            escape(&self.title)
        );
        for power in scale.low..=scale.high {
            let (value, y) = (10f64.powi(power), scale.place(10f64.powi(power)));
            svg.push_str(&format!(
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e3e8ee\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0
            ));
        }
        for (at, point) in self.points.iter().enumerate() {
            let (x, y) = (self.column(at), HEIGHT - 10.0);
            svg.push_str(&format!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", escape(point)));
        }
        for (subject, figures) in &self.series {
            svg.push_str(&self.line(&scale, *subject, figures));
        }
        if let Some(limit) = self.limit {
            let (x, y) = (self.column(self.points.len().saturating_sub(1)), scale.place(limit));
            svg.push_str(&format!(
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#000\" stroke-width=\"2\"/>",
                x - 14.0,
                x + 14.0
            ));
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Where a point lies; a single one lies in the middle.
    fn column(&self, at: usize) -> f64 {
        let inside = WIDTH - LEFT - RIGHT - 60.0;
        match self.points.len() {
            0 | 1 => LEFT + 30.0 + inside / 2.0,
            points => LEFT + 30.0 + inside * at as f64 / (points - 1) as f64,
        }
    }

    fn line(&self, scale: &Scale, subject: Name, figures: &[Option<Figure>]) -> String {
        let (mut path, mut marks, stroke) = (String::new(), String::new(), color(subject));
        for (at, figure) in figures.iter().enumerate() {
            let Some(figure) = figure else { continue };
            let (x, y) = (self.column(at), scale.place(figure.median));
            path.push_str(&format!("{}{x:.1},{y:.1} ", if path.is_empty() { "M" } else { "L" }));
            marks.push_str(&format!(
                "<g><title>{subject}: {}</title>\
                 <line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{stroke}\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{stroke}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" style=\"font-size:10px\">{}</text></g>",
                figure.shown(),
                scale.place(figure.min),
                scale.place(figure.max),
                x + 6.0,
                y - 5.0,
                number(figure.median)
            ));
        }
        format!("<path d=\"{}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"2\"/>{marks}", path.trim_end())
    }
}

/// Powers of ten from the one below the least value to the one above the largest.
#[derive(Debug, PartialEq)]
struct Scale {
    low: i32,
    high: i32,
}

impl Scale {
    fn around(least: f64, most: f64) -> Self {
        let low = least.log10().floor() as i32;
        Self { low, high: (most.log10().ceil() as i32).max(low + 1) }
    }

    /// Distance from the top; values off the scale lie at its ends.
    fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        // NaN, of a value below zero, is the lower end as well.
        let share = if share >= 0.0 { share.min(1.0) } else { 0.0 };
        TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_holds_every_value() {
        for (least, most, low, high) in
            [(3.0, 250.0, 0, 3), (0.02, 0.03, -2, -1), (10.0, 10.0, 1, 2), (1.0, 1000.0, 0, 3)]
        {
            assert_eq!(Scale::around(least, most), Scale { low, high }, "{least} to {most}");
        }
        let scale = Scale { low: 0, high: 2 };
        assert_eq!(scale.place(1.0), HEIGHT - BOTTOM);
        assert_eq!(scale.place(100.0), TOP);
        assert_eq!(scale.place(10.0), (HEIGHT - BOTTOM + TOP) / 2.0);
        assert_eq!((scale.place(0.0), scale.place(-1.0), scale.place(1e9)), (HEIGHT - BOTTOM, HEIGHT - BOTTOM, TOP));
    }

    #[test]
    fn a_missing_point_is_left_out_and_nothing_is_no_chart() {
        let figure = |median| Some(Figure { median, min: median, max: median });
        let mut lines = Lines {
            title: "a & b".into(),
            points: vec!["1".into(), "10".into(), "100".into()],
            series: vec![(Name::Shika, vec![figure(2.0), None, figure(20.0)])],
            limit: Some(60.0),
        };
        let svg = lines.svg();
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        assert!(svg.contains("a &amp; b") && svg.contains("stroke-width=\"2\"/></svg>"), "{svg}");
        lines.series.clear();
        lines.limit = None;
        assert_eq!(lines.svg(), "");
    }
}
