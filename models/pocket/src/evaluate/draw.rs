//! A plot of best of N: the tournament between random choice and the oracle.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::BestOf;
use selfjudge::eval::{Estimate, EvalError};

const SIZE: (u32, u32) = (760, 480);

/// Returns an SVG of accuracy over N on a logarithmic axis, with an interval for every N of each curve.
///
/// # Errors
/// Returns the error of the plotting library.
pub fn best_of_plot(rows: &[BestOf]) -> Result<String, EvalError> {
    draw(rows).map_err(|error| EvalError::Plot(error.to_string()))
}

fn draw(rows: &[BestOf]) -> Result<String, Box<dyn std::error::Error>> {
    type Curve = fn(&BestOf) -> Estimate;
    let curves: [(&str, RGBColor, Curve); 3] = [
        ("oracle", RGBColor(107, 114, 128), |row| row.oracle),
        ("tournament", RGBColor(37, 99, 235), |row| row.tournament),
        ("random choice", RGBColor(217, 119, 6), |row| row.random),
    ];
    let last = rows.len().saturating_sub(1).max(1) as f64;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .margin_right(120)
            .caption("Best of N on held-out instructions", ("sans-serif", 20))
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..last, 0.0..100.0)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_labels(rows.len().max(2))
            .x_desc("N samples")
            .y_desc("right answers (%)")
            .x_label_formatter(&|x| format!("{:.0}", x.exp2()))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .label_style(("sans-serif", 14))
            .draw()?;
        for (name, colour, curve) in curves {
            let points: Vec<(f64, Estimate)> = rows
                .iter()
                .map(|row| ((row.n as f64).log2(), curve(row)))
                .collect();
            let line = points.iter().map(|(x, e)| (*x, 100.0 * e.mean));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
            for (x, e) in &points {
                let interval = [(*x, 100.0 * e.low), (*x, 100.0 * e.high)];
                chart.draw_series(LineSeries::new(interval, colour.mix(0.5)))?;
            }
            if let Some((x, e)) = points.last() {
                let style = TextStyle::from(("sans-serif", 15).into_font())
                    .color(&colour)
                    .pos(Pos::new(HPos::Left, VPos::Center));
                let (right, height) = chart.backend_coord(&(*x, 100.0 * e.mean));
                root.draw(&Text::new(name, (right + 8, height), style))?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_has_three_curves_and_no_rows_still_draw() {
        let at = |mean| Estimate {
            mean,
            low: mean - 0.05,
            high: mean + 0.05,
            count: 1,
        };
        let rows: Vec<BestOf> = [1, 2, 4, 8, 16]
            .into_iter()
            .zip([0.5, 0.6, 0.7, 0.8, 0.85])
            .map(|(n, mean)| BestOf {
                n,
                tournament: at(mean),
                random: at(0.5),
                oracle: at(mean + 0.1),
                gain: at(mean - 0.5),
            })
            .collect();
        let svg = best_of_plot(&rows).unwrap();
        for word in ["oracle", "tournament", "random choice", "N samples"] {
            assert!(svg.contains(word), "no {word}");
        }
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), 3);
        assert!(best_of_plot(&[]).unwrap().contains("N samples"));
    }
}
