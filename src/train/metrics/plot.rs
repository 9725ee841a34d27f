//! The loss curve as SVG.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::MetricsRow;

const SIZE: (u32, u32) = (960, 540);
/// Time constant of the smoothed curves, as a fraction of the number of rows.
const SMOOTHING: f64 = 0.02;

/// Returns an SVG of the rows' curves that have values: raw values faint, their running mean on top.
pub(super) fn loss_curve<R: MetricsRow>(rows: &[R]) -> Result<String, String> {
    draw(rows).map_err(|e| format!("cannot draw the loss curve: {e}"))
}

/// One colour per curve, the first the darkest.
const COLOURS: [RGBColor; 3] = [
    RGBColor(31, 41, 55),
    RGBColor(37, 99, 235),
    RGBColor(217, 119, 6),
];

fn draw<R: MetricsRow>(rows: &[R]) -> Result<String, Box<dyn std::error::Error>> {
    let points = |name: &str| -> Vec<(f64, f64)> {
        let value = |r: &R| r.scalars().into_iter().find(|(n, _)| *n == name);
        rows.iter()
            .filter_map(|r| Some((r.global_step() as f64, value(r)?.1)))
            .filter(|(_, value)| value.is_finite())
            .collect()
    };
    let series: Vec<_> = R::CURVES
        .iter()
        .zip(COLOURS)
        .map(|(&name, colour)| (name, colour, points(name)))
        .collect();
    let all: Vec<(f64, f64)> = series.iter().flat_map(|s| s.2.clone()).collect();
    let last = all.iter().map(|p| p.0).fold(1.0, f64::max);
    let first = all.iter().map(|p| p.0).fold(last - 1.0, f64::min);
    let top = all.iter().map(|p| p.1).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.05 } else { 1.0 };

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .caption("Training loss", ("sans-serif", 20))
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(first..last, 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_desc("step")
            .y_desc(R::UNIT)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.2}"))
            .label_style(("sans-serif", 14))
            .draw()?;
        for (i, (name, colour, raw)) in series.into_iter().enumerate() {
            if raw.is_empty() {
                continue;
            }
            chart.draw_series(LineSeries::new(raw.clone(), colour.mix(0.2)))?;
            chart.draw_series(LineSeries::new(smoothed(&raw), colour.stroke_width(2)))?;
            let style = TextStyle::from(("sans-serif", 15).into_font())
                .color(&colour)
                .pos(Pos::new(HPos::Right, VPos::Top));
            let right = i32::try_from(SIZE.0)? - 28;
            root.draw(&Text::new(
                name,
                (right, 52 + 20 * i32::try_from(i)?),
                style,
            ))?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// Returns a running mean without a bias towards zero at the start.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 * SMOOTHING).max(1.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(step, loss)| {
            mean = keep * mean + (1.0 - keep) * loss;
            weight = keep * weight + (1.0 - keep);
            (step, mean / weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::StepMetrics;

    #[test]
    fn the_curve_has_its_lines_and_its_words() {
        let rows: Vec<StepMetrics> = (1..=200)
            .map(|step| StepMetrics {
                global_step: step,
                loss: 3.0 / (step as f64).sqrt(),
                judge_loss: (step % 2 == 0).then_some(0.7),
                ..StepMetrics::default()
            })
            .collect();
        let svg = loss_curve(&rows).unwrap();
        for word in ["Training loss", "step", "judge/loss", "200", "3.00"] {
            assert!(svg.contains(word), "no {word}");
        }
        assert!(!svg.contains("sft/loss"));
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), 2);
        let smooth = smoothed(&[(1.0, 2.0); 500]);
        assert!(smooth.iter().all(|p| (p.1 - 2.0).abs() < 1e-12));
    }

    #[test]
    fn empty_single_and_broken_rows_still_draw() {
        let row = |loss| StepMetrics {
            global_step: 1,
            loss,
            ..StepMetrics::default()
        };
        for rows in [vec![], vec![row(2.0)], vec![row(0.0)], vec![row(f64::NAN)]] {
            assert!(loss_curve(&rows).unwrap().contains("Training loss"));
        }
    }
}
