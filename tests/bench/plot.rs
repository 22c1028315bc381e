//! Line charts as SVG: enough for memory and latency against the number of containers.

use std::fmt::Write;

/// Of the picture, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// What is left of the axes, and around all.
const LEFT: f64 = 70.0;
const MARGIN: f64 = 40.0;
/// For names, at the right.
const NAMES: f64 = 110.0;
const COLOURS: [&str; 6] = [
    "#c0392b", "#2471a3", "#1e8449", "#b7950b", "#6c3483", "#555555",
];

/// A line.
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Series {
    pub fn of(name: &str) -> Series {
        Series {
            name: name.into(),
            points: Vec::new(),
        }
    }

    pub fn push(&mut self, x: f64, y: f64) {
        self.points.push((x, y));
    }
}

/// A chart with a logarithmic axis for the values, since shims differ by a factor of 20.
pub fn svg(title: &str, x_title: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| &series.points);
    let most_x = points().map(|point| point.0).fold(1.0, f64::max);
    let lowest = points().map(|point| point.1).fold(f64::MAX, f64::min);
    let highest = points().map(|point| point.1).fold(1.0, f64::max);
    let lower = 10_f64.powf(lowest.clamp(0.01, highest).log10().floor());
    let upper = 10_f64.powf(highest.log10().ceil()).max(lower * 10.0);
    let x_of = |x: f64| LEFT + x / most_x * (WIDTH - LEFT - NAMES);
    let y_of = |y: f64| {
        let part = (y.max(lower) / lower).log10() / (upper / lower).log10();
        HEIGHT - MARGIN - part * (HEIGHT - 2.0 * MARGIN)
    };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{title}</text>\n"
    );
    let mut line = lower;
    while line <= upper * 1.001 {
        let y = y_of(line);
        write!(
            text,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{line}</text>\n",
            WIDTH - NAMES,
            LEFT - 6.0,
            y + 4.0,
        )
        .unwrap();
        line *= 10.0;
    }
    let bottom = HEIGHT - MARGIN + 16.0;
    for step in 0..=4 {
        let x = most_x * f64::from(step) / 4.0;
        let at = x_of(x);
        writeln!(
            text,
            "<text x=\"{at:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{x:.0}</text>"
        )
        .unwrap();
    }
    let middle = x_of(most_x / 2.0);
    writeln!(
        text,
        "<text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{x_title}</text>",
        bottom + 16.0
    )
    .unwrap();
    // Names beside the ends of their lines, each below the one above it.
    let end = |series: &Series| {
        series
            .points
            .last()
            .map_or(HEIGHT / 2.0, |point| y_of(point.1))
    };
    let mut order: Vec<usize> = (0..series.len()).collect();
    order.sort_by(|a, b| end(&series[*a]).total_cmp(&end(&series[*b])));
    let mut above = 0.0;
    for at in order {
        let series = &series[at];
        let name_at = (end(series) + 4.0).max(above + 14.0);
        above = name_at;
        let colour = COLOURS[at % COLOURS.len()];
        let mut path = String::new();
        for (x, y) in &series.points {
            write!(path, "{:.1},{:.1} ", x_of(*x), y_of(*y)).unwrap();
        }
        write!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>\n",
            path.trim_end(),
            WIDTH - NAMES + 6.0,
            name_at,
            series.name,
        )
        .unwrap();
    }
    text + "</svg>\n"
}
