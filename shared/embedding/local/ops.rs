use ndarray::Array2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Gelu,
    /// The approximation with the hyperbolic tangent, <https://arxiv.org/abs/1606.08415>.
    GeluTanh,
    Relu,
}

impl Activation {
    pub(super) fn apply(self, numbers: &mut Array2<f32>) {
        match self {
            Self::Gelu => numbers.mapv_inplace(gelu),
            Self::GeluTanh => numbers.mapv_inplace(gelu_tanh),
            Self::Relu => numbers.mapv_inplace(|x| x.max(0.0)),
        }
    }
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f32) -> f32 {
    /// √(2/π)
    const ROOT: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (ROOT * (x + 0.044_715 * x * x * x)).tanh())
}

/// Within 5e-7. A quotient of polynomials in x², which the compiler vectorizes, unlike the library's function.
fn erf(x: f32) -> f32 {
    const ABOVE: [f32; 6] =
        [1.974_819_5e-6, 2.880_418_6e-4, 4.003_68e-3, 5.346_758_3e-2, 1.962_498_3e-1, std::f32::consts::FRAC_2_SQRT_PI];
    const BELOW: [f32; 6] = [3.748_077_5e-5, 1.216_367_5e-3, 1.544_449e-2, 1.164_767_7e-1, 5.072_530_5e-1, 1.0];
    // Beyond 4 it rounds to 1.
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let polynomial = |coefficients: &[f32; 6]| coefficients.iter().fold(0.0, |sum, next| sum * square + next);
    x * polynomial(&ABOVE) / polynomial(&BELOW)
}

pub(super) fn softmax(scores: &mut Array2<f32>) {
    for mut row in scores.rows_mut() {
        let max = row.fold(f32::NEG_INFINITY, |max, score| max.max(*score));
        row.mapv_inplace(|score| (score - max).exp());
        let sum = row.sum();
        row /= sum;
    }
}

/// <https://arxiv.org/abs/1607.06450>.
#[derive(Debug)]
pub(super) struct LayerNorm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) eps: f32,
}

impl LayerNorm {
    pub(super) fn apply(&self, rows: &mut Array2<f32>) {
        let size = self.weight.len() as f32;
        for mut row in rows.rows_mut() {
            let mean = row.sum() / size;
            let variance = row.fold(0.0, |sum, x| sum + (x - mean) * (x - mean)) / size;
            let scale = (variance + self.eps).sqrt().recip();
            for (x, (weight, bias)) in row.iter_mut().zip(self.weight.iter().zip(&self.bias)) {
                *x = (*x - mean) * scale * weight + bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    /// Its Taylor series converges well enough up to 4; beyond, it is 1 within 2e-8.
    fn true_erf(x: f64) -> f64 {
        if x.abs() > 4.0 {
            return x.signum();
        }
        let (mut sum, mut power) = (0.0, x);
        for n in 0..200_u32 {
            sum += power / f64::from(2 * n + 1);
            power *= -x * x / f64::from(n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn erf_is_within_its_error_bound() {
        for step in -6_000..=6_000_i16 {
            let x = f32::from(step) / 1_000.0;
            let truth = true_erf(f64::from(x));
            assert!((f64::from(erf(x)) - truth).abs() < 5e-7, "erf({x}) = {truth}, not {}", erf(x));
        }
    }

    #[test]
    fn softmax_sums_to_one_for_large_scores() {
        let mut scores = array![[0.0, 0.0], [1_000.0, 0.0]];
        softmax(&mut scores);
        assert_eq!(scores, array![[0.5, 0.5], [1.0, 0.0]]);
    }
}
