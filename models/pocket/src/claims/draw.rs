//! Plots: accuracy over generations, and best of N before and after.

use std::error::Error;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::report::OverSeeds;
use super::run::RunResult;
use super::variant::Variant;

const SIZE: (u32, u32) = (760, 480);
const COLOURS: [RGBColor; 9] = [
    RGBColor(37, 99, 235),
    RGBColor(22, 163, 74),
    RGBColor(217, 119, 6),
    RGBColor(107, 114, 128),
    RGBColor(147, 51, 234),
    RGBColor(219, 39, 119),
    RGBColor(13, 148, 136),
    RGBColor(101, 163, 13),
    RGBColor(220, 38, 38),
];

type Drawn = Result<String, Box<dyn Error>>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A named line with one curve per seed.
struct Curve {
    name: String,
    colour: RGBColor,
    seeds: Vec<Vec<(f64, f64)>>,
}

/// Plots the accuracy of the served version, generation by generation.
pub fn generations_plot(runs: &[RunResult]) -> Drawn {
    let mut curves = Vec::new();
    let mut last = 1.0_f64;
    for (variant, colour) in Variant::ALL.into_iter().zip(COLOURS) {
        let seeds = runs.iter().filter(|run| run.variant == variant).map(|run| {
            let accuracy = run
                .generations
                .iter()
                .map(|g| 100.0 * g.measured.correct.mean);
            // A generation of one long stage is placed at its number of prompts.
            let step = (variant.stage_units() / variant.stages()) as f64;
            (0..)
                .map(|at| f64::from(at) * step)
                .zip(accuracy)
                .collect::<Vec<_>>()
        });
        let seeds: Vec<_> = seeds.collect();
        for (x, _) in seeds.iter().flatten() {
            last = last.max(*x);
        }
        if !seeds.is_empty() {
            curves.push(Curve {
                name: variant.name().to_owned(),
                colour,
                seeds,
            });
        }
    }
    draw(
        "Accuracy of the served policy",
        "stages' worth of prompts",
        (0.0, last),
        |x| format!("{x:.0}"),
        &curves,
    )
}

/// Plots best of N of the initial model and of the last generation, each judged by itself.
pub fn best_of_plot(runs: &[RunResult]) -> Drawn {
    let of = |last: bool| -> Vec<Vec<(f64, f64)>> {
        let runs = runs.iter().filter(|run| run.variant == Variant::Stages);
        let generations = runs.filter_map(|run| match last {
            true => run.generations.last(),
            false => run.generations.first(),
        });
        generations
            .map(|generation| {
                let rows = generation.measured.best_of.iter();
                rows.map(|row| ((row.n as f64).log2(), 100.0 * row.correct.mean))
                    .collect()
            })
            .collect()
    };
    let curves = [
        ("start", COLOURS[3], of(false)),
        ("trained", COLOURS[0], of(true)),
    ];
    let curves = curves.map(|(name, colour, seeds)| Curve {
        name: name.to_owned(),
        colour,
        seeds,
    });
    let last = curves.iter().flat_map(|curve| curve.seeds.iter().flatten());
    let last = last.map(|(x, _)| *x).fold(1.0, f64::max);
    draw(
        "Best of N, the policy its own judge",
        "N samples",
        (0.0, last),
        |x| format!("{:.0}", x.exp2()),
        &curves,
    )
}

fn draw(
    caption: &str,
    axis: &str,
    (first, last): (f64, f64),
    label: fn(&f64) -> String,
    curves: &[Curve],
) -> Drawn {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .caption(caption, ("sans-serif", 20))
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(first..last, 0.0..100.0)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_labels(last as usize + 1)
            .x_desc(axis)
            .y_desc("right answers (%)")
            .x_label_formatter(&label)
            .y_label_formatter(&|y| format!("{y:.0}"))
            .label_style(("sans-serif", 14))
            .draw()?;
        for curve in curves {
            line(&mut chart, curve)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .label_font(("sans-serif", 14))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

/// Draws each seed as a thin line, and their mean as a thick one with its interval.
fn line(chart: &mut Chart<'_, '_>, curve: &Curve) -> Result<(), Box<dyn Error>> {
    for seed in &curve.seeds {
        let style = curve.colour.mix(0.3).stroke_width(1);
        chart.draw_series(LineSeries::new(seed.iter().copied(), style))?;
    }
    let points = curve.seeds.iter().map(Vec::len).min().unwrap_or(0);
    let over: Vec<(f64, OverSeeds)> = (0..points)
        .filter_map(|at| {
            let values: Vec<f64> = curve.seeds.iter().map(|seed| seed[at].1).collect();
            Some((curve.seeds[0][at].0, OverSeeds::new(&values)?))
        })
        .collect();
    let intervals = over.iter().filter(|(_, over)| over.half > 0.0);
    chart.draw_series(intervals.map(|&(x, OverSeeds { mean, half, .. })| {
        let ends = [(mean - half).max(0.0), (mean + half).min(100.0)];
        PathElement::new(ends.map(|y| (x, y)), curve.colour.stroke_width(1))
    }))?;
    let mean = over.iter().map(|&(x, OverSeeds { mean, .. })| (x, mean));
    let colour = curve.colour;
    chart
        .draw_series(LineSeries::new(mean, colour.stroke_width(2)))?
        .label(curve.name.as_str())
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_nothing_are_empty_pictures() {
        assert!(generations_plot(&[]).unwrap().contains("Accuracy"));
        assert!(best_of_plot(&[]).unwrap().contains("N samples"));
    }
}
