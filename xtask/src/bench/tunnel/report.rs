//! The table: medians, ranges, and our ratio to each peer.

use std::collections::BTreeMap;

use super::measure::{Case, Measured};

/// Everything measured, by case and program.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// In the order of first measurement.
    names: Vec<String>,
    figures: BTreeMap<(Case, usize), Vec<Measured>>,
}

impl Report {
    pub(super) fn add(&mut self, name: &str, case: Case, measured: Measured) {
        let place = self.names.iter().position(|known| known == name);
        let place = place.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        self.figures
            .entry((case, place))
            .or_default()
            .push(measured);
    }

    /// Renders Markdown; ratios above 1 are in favour of the first program.
    pub(super) fn table(&self) -> String {
        let mut table = String::from(
            "\n| case | program | ratio | median (range) | per CPU-s ratio | per CPU-s | beside | \
             peak MB |\n|---|---|---|---|---|---|---|---|\n",
        );
        for ((case, place), figures) in &self.figures {
            let ours = self
                .figures
                .get(&(*case, 0))
                .map_or(&figures[..], |ours| &ours[..]);
            let [unit, per_cpu_unit, beside_unit] = case.units();
            let value = spread(figures, |m| m.value);
            let per_cpu = spread(figures, |m| m.per_cpu);
            let (our_value, our_cpu) = (spread(ours, |m| m.value), spread(ours, |m| m.per_cpu));
            let ratio = if case.is_latency() {
                value.median / our_value.median
            } else {
                our_value.median / value.median
            };
            table += &format!(
                "| {} | {} | {ratio:.2} | {value} {unit} | {:.2} | {:.2} {per_cpu_unit} | {} \
                 {beside_unit}{} | {:.0} |\n",
                case.name(),
                self.names[*place],
                our_cpu.median / per_cpu.median,
                per_cpu.median,
                spread(figures, |m| m.beside),
                meanwhile(figures),
                spread(figures, |m| m.memory).high,
            );
        }
        table
    }
}

/// Names what a stream had meanwhile, if there was one.
fn meanwhile(figures: &[Measured]) -> String {
    if figures.iter().any(|m| m.load.is_none()) {
        return String::new();
    }
    let load = spread(figures, |m| m.load.unwrap_or(f64::NAN));
    format!(", {load} Gb/s meanwhile")
}

/// The median and the ends of several figures.
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { low, median, high } = self;
        // Three digits behind the point: a slow link is a tenth of a Gb/s.
        write!(f, "{median:.3} ({low:.3}-{high:.3})")
    }
}

fn spread(figures: &[Measured], of: impl Fn(&Measured) -> f64) -> Spread {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    Spread {
        low: values[0],
        median,
        high: values[values.len() - 1],
    }
}
