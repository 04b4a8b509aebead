//! What the encoder does to single numbers and rows, in place.
//!
//! Candle shares its own such operations out over one set of threads for the whole process, which spin while they wait.
//! Beside a server's other work that costs more than it gains: a quarter of an encoding's time.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, bail};

/// What stands between the two linear layers of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// With the error function.
    Gelu,
    /// With the hyperbolic tangent instead.
    GeluTanh,
    Relu,
}

impl InplaceOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let numbers = numbers_mut(storage, layout)?;
        match self {
            Self::Gelu => numbers.iter_mut().for_each(|x| *x = gelu(*x)),
            Self::GeluTanh => numbers.iter_mut().for_each(|x| *x = gelu_tanh(*x)),
            Self::Relu => numbers.iter_mut().for_each(|x| *x = x.max(0.0)),
        }
        Ok(())
    }
}

/// <https://arxiv.org/abs/1606.08415>
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Its approximation, from the same paper.
fn gelu_tanh(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (ROOT * (x + 0.044_715 * x * x * x)).tanh())
}

/// The error function, within 5e-7 of the true one.
///
/// A quotient of polynomials in x² (a least-squares fit, reweighted towards the least greatest error), which the
/// compiler turns into vector instructions; the library's function takes one number at a time.
fn erf(x: f32) -> f32 {
    const ABOVE: [f32; 6] =
        [1.974_819_5e-6, 2.880_418_6e-4, 4.003_68e-3, 5.346_758_3e-2, 1.962_498_3e-1, std::f32::consts::FRAC_2_SQRT_PI];
    const BELOW: [f32; 6] = [3.748_077_5e-5, 1.216_367_5e-3, 1.544_449e-2, 1.164_767_7e-1, 5.072_530_5e-1, 1.0];
    // From here on it rounds to 1.
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let polynomial = |coefficients: &[f32; 6]| coefficients.iter().fold(0.0, |sum, next| sum * square + next);
    x * polynomial(&ABOVE) / polynomial(&BELOW)
}

/// Adds a tensor to as many parts of another as it goes into: a bias to every row, or a state to another.
pub(super) struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        storage: &mut CpuStorage,
        layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (numbers, other) = (numbers_mut(storage, layout)?, numbers(other, other_layout)?);
        if other.is_empty() {
            bail!("nothing to add");
        }
        for part in numbers.chunks_exact_mut(other.len()) {
            for (x, y) in part.iter_mut().zip(other) {
                *x += y;
            }
        }
        Ok(())
    }
}

/// The softmax of rows of scores over a text's tokens; what stands for padding gets 0.
pub(super) struct Softmax<'a> {
    /// Number of tokens of each text.
    pub(super) lengths: &'a [usize],
    /// Scores in a row, padding included.
    pub(super) width: usize,
}

impl InplaceOp1 for Softmax<'_> {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let numbers = numbers_mut(storage, layout)?;
        let text = numbers.len() / self.lengths.len();
        for (rows, length) in numbers.chunks_exact_mut(text).zip(self.lengths) {
            for row in rows.chunks_exact_mut(self.width) {
                let (scores, padding) = row.split_at_mut(*length);
                let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0;
                for score in &mut *scores {
                    *score = (*score - greatest).exp();
                    sum += *score;
                }
                scores.iter_mut().for_each(|score| *score /= sum);
                padding.fill(0.0);
            }
        }
        Ok(())
    }
}

/// Layer normalisation, <https://arxiv.org/abs/1607.06450>.
#[derive(Debug)]
pub(super) struct LayerNorm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) eps: f32,
}

impl InplaceOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer normalisation"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let size = self.weight.len();
        for row in numbers_mut(storage, layout)?.chunks_exact_mut(size) {
            let mean = row.iter().sum::<f32>() / size as f32;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / size as f32;
            let scale = (variance + self.eps).sqrt().recip();
            for (x, (weight, bias)) in row.iter_mut().zip(self.weight.iter().zip(&self.bias)) {
                *x = (*x - mean) * scale * weight + bias;
            }
        }
        Ok(())
    }
}

fn numbers_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(numbers), Some((start, end))) => Ok(&mut numbers[start..end]),
        _ => bail!("not contiguous f32"),
    }
}

fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(numbers), Some((start, end))) => Ok(&numbers[start..end]),
        _ => bail!("not contiguous f32"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn the_error_function_is_near_the_true_one() {
        for step in -6_000..=6_000_i16 {
            let x = f32::from(step) / 1_000.0;
            let truth = Tensor::new(f64::from(x), &Device::Cpu).unwrap().erf().unwrap().to_scalar::<f64>().unwrap();
            assert!((f64::from(erf(x)) - truth).abs() < 5e-7, "erf({x}) = {truth}, not {}", erf(x));
        }
    }

    #[test]
    fn padding_has_no_share_in_the_softmax() {
        let scores = Tensor::new(&[[0.0_f32, 0.0, 9.0], [1.0, 1.0, 1.0]], &Device::Cpu).unwrap();
        scores.inplace_op1(&Softmax { lengths: &[2, 3], width: 3 }).unwrap();
        let third = 1.0 / 3.0;
        assert_eq!(scores.to_vec2::<f32>().unwrap(), [[0.5, 0.5, 0.0], [third, third, third]]);
    }
}
