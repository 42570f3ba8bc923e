// Updates of weights: one pass over memory each.
//
// What each one computes is what paramd_server.arrays.compiled_updates computes, operation by
// operation, so that a GPU gives a CPU's bits. Everything is rounded once, when it is stored.
// COMPUTE is double for a double WEIGHT, float32 for others; NUMBER is the same as a plain number.

DEVICE float32 number(float x) {
    return float32{x};
}

DEVICE double number(double x) {
    return x;
}

#define ONE number((NUMBER)1)
#define ZERO number((NUMBER)0)

// The value within -bound to bound; a NaN stays one.
DEVICE COMPUTE clipped(COMPUTE value, COMPUTE bound) {
    return value > bound ? bound : value < -bound ? -bound : value;
}

// Of the magnitude given and the sign of x; a NaN stays one.
DEVICE COMPUTE signed_as(COMPUTE x, COMPUTE magnitude) {
    return x > ZERO ? magnitude : x < ZERO ? -magnitude : x * ZERO;
}

// A number as the sum of two, the second of which has the bits that the first has no place for.
struct Exact {
    double high, low;
};

DEVICE Exact operator*(Exact a, Exact b) {
    const double product = a.high * b.high;
    double rest = multiplied_add(a.high, b.high, -product);
    rest += a.high * b.low + a.low * b.high;
    const double high = product + rest;
    return Exact{high, rest - (high - product)};
}

// base ^ count, for 0 <= base <= 1 and a whole or infinite count: rounded once, unlike CUDA's pow,
// of which the last bits are not those of a CPU.
DEVICE double power(double base, double count) {
    const int64 most = (int64)1 << 62;
    Exact result = {1, 0}, square = {base, 0};
    for (int64 rest = count < (double)most ? (int64)count : most; rest > 0; rest >>= 1) {
        if (rest & 1) result = result * square;
        square = square * square;
    }
    return result.high;
}

// What a mean has of 1 after `count` updates, since it began at 0.
DEVICE COMPUTE correction(COMPUTE beta, COMPUTE count) {
    return Narrow<COMPUTE>::of(1.0 - power(Narrow<double>::of(beta), Narrow<double>::of(count)));
}

// What a rule computes before it sees an element, where that takes long.
template <class Rule>
DEVICE void prepare(Rule*, const double*) {}

// Each rule has the constants of its update, in order. `next` takes the weight, its gradient and
// the states, which it changes; it gives the weight's new value.

#if defined(UPDATE_sgd)

struct Rule {
    COMPUTE rescale, clip, lr, wd;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE*) const {
        return old - (lr * wd * old + lr * clipped(rescale * gradient, clip));
    }
};

#elif defined(UPDATE_sgd_momentum)

struct Rule {
    COMPUTE rescale, clip, lr, wd, mu;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        COMPUTE& momentum = states[0];
        momentum = mu * momentum - lr * wd * old - lr * clipped(rescale * gradient, clip);
        return old + momentum;
    }
};

#elif defined(UPDATE_nag_momentum)

struct Rule {
    COMPUTE rescale, clip, lr, wd, mu;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient, clip), kept = mu * states[0];
        const COMPUTE after = old - kept + (ONE + mu) * (kept - lr * (x + wd * old));
        // As in MXNet the momentum has the decay of the new weight.
        states[0] = kept - lr * (x + wd * after);
        return after;
    }
};

#elif defined(UPDATE_sign)

struct Rule {
    COMPUTE rescale, clip, lr, wd;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE*) const {
        const COMPUTE x = clipped(rescale * gradient, clip);
        return (ONE - lr * wd) * old - signed_as(x, lr);
    }
};

#elif defined(UPDATE_sign_momentum)

struct Rule {
    COMPUTE rescale, clip, lr, wd, mu, decoupled_wd;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient, clip), rest = ONE - mu;
        COMPUTE& mean = states[0];
        mean = mu * mean - rest * wd * old - rest * x;
        return (ONE - lr * decoupled_wd) * old + signed_as(mean, lr);
    }
};

#elif defined(UPDATE_adam)

struct Rule {
    COMPUTE rescale, clip, lr, wd, beta1, beta2, epsilon;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient + wd * old, clip);
        COMPUTE &mean = states[0], &variance = states[1];
        mean = beta1 * mean + (ONE - beta1) * x;
        variance = beta2 * variance + (ONE - beta2) * x * x;
        return old - lr * mean / (root(variance) + epsilon);
    }
};

#elif defined(UPDATE_adamw)

struct Rule {
    COMPUTE rescale, clip, lr, wd, beta1, beta2, epsilon, count;
    COMPUTE correction1, correction2;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient, clip);
        COMPUTE &mean = states[0], &variance = states[1];
        mean = beta1 * mean + (ONE - beta1) * x;
        variance = beta2 * variance + (ONE - beta2) * x * x;
        const COMPUTE step = mean / correction1 / (root(variance / correction2) + epsilon);
        return old - lr * (step + wd * old);
    }
};

DEVICE void prepare(Rule* rule, const double*) {
    rule->correction1 = correction(rule->beta1, rule->count);
    rule->correction2 = correction(rule->beta2, rule->count);
}

#elif defined(UPDATE_adagrad)

struct Rule {
    COMPUTE rescale, clip, lr, wd, epsilon;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient, clip);
        COMPUTE& history = states[0];
        history = history + x * x;
        return old - lr * (x / root(history + epsilon) + wd * old);
    }
};

#elif defined(UPDATE_rmsprop)

struct Rule {
    COMPUTE rescale, clip, lr, wd, decay, epsilon, clip_weights;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient + wd * old, clip);
        COMPUTE& variance = states[0];
        variance = (ONE - decay) * (x * x) + decay * variance;
        return clipped(old - lr * (x / root(variance + epsilon)), clip_weights);
    }
};

#elif defined(UPDATE_rmsprop_centered)

struct Rule {
    COMPUTE rescale, clip, lr, wd, decay, epsilon, clip_weights, momentum;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient + wd * old, clip), rest = ONE - decay;
        COMPUTE &variance = states[0], &mean = states[1], &delta = states[2];
        variance = decay * variance + rest * x * x;
        mean = decay * mean + rest * x;
        delta = momentum * delta - lr * x / root(variance - mean * mean + epsilon);
        return clipped(old + delta, clip_weights);
    }
};

#elif defined(UPDATE_adadelta)

struct Rule {
    COMPUTE rescale, clip, wd, decay, epsilon;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient, clip), rest = ONE - decay;
        COMPUTE &variance = states[0], &delta_variance = states[1];
        variance = decay * variance + rest * x * x;
        const COMPUTE step = root(delta_variance + epsilon) / root(variance + epsilon) * x;
        delta_variance = decay * delta_variance + rest * step * step;
        return old - (step + wd * old);
    }
};

#elif defined(UPDATE_ftrl)

struct Rule {
    COMPUTE rescale, clip, lr, wd, lamda1, beta;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient, clip);
        COMPUTE &linear = states[0], &squares = states[1];
        const COMPUTE before = root(squares);
        squares = squares + x * x;
        linear = linear + (x - (root(squares) - before) * old / lr);
        // sign(linear) * lamda1 - linear, where its magnitude is above lamda1; a NaN stays one.
        COMPUTE pull = linear * ZERO;
        if (linear > lamda1) pull = lamda1 - linear;
        if (linear < -lamda1) pull = -lamda1 - linear;
        return pull / ((beta + root(squares)) / lr + wd);
    }
};

#elif defined(UPDATE_dcasgd)

struct Rule {
    COMPUTE rescale, clip, lr, wd, lamda;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient, clip);
        COMPUTE& previous = states[0];
        const COMPUTE after = old - lr * (x + wd * old + lamda * x * x * (old - previous));
        previous = old;
        return after;
    }
};

#elif defined(UPDATE_dcasgd_momentum)

struct Rule {
    COMPUTE rescale, clip, lr, wd, lamda, mu;

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
        const COMPUTE x = clipped(rescale * gradient, clip);
        COMPUTE &previous = states[0], &momentum = states[1];
        const COMPUTE slope = x + wd * old + lamda * x * x * (old - previous);
        momentum = mu * momentum - lr * slope;
        previous = old;
        return old + momentum;
    }
};

#elif defined(UPDATE_lamb)

struct Rule {
    COMPUTE rescale, clip, lr, wd, beta1, beta2, epsilon, count, lower_bound, upper_bound;
    COMPUTE correction1, correction2, rate;

    DEVICE COMPUTE step(COMPUTE weight, const COMPUTE* states) const {
        const COMPUTE spread = root(states[1] / correction2) + epsilon;
        return states[0] / correction1 / spread + wd * weight;
    }

    DEVICE COMPUTE next(COMPUTE old, COMPUTE gradient, COMPUTE* states) const {
#ifdef KERNEL_lamb_moments
        const COMPUTE x = clipped(rescale * gradient, clip);
        states[0] = beta1 * states[0] + (ONE - beta1) * x;
        states[1] = beta2 * states[1] + (ONE - beta2) * x * x;
        return old;
#else
        return old - rate * step(old, states);
#endif
    }
};

// sums: the squares of the weight, and those of the step; null where there are none yet.
DEVICE void prepare(Rule* rule, const double* sums) {
    rule->correction1 = correction(rule->beta1, rule->count);
    rule->correction2 = correction(rule->beta2, rule->count);
    rule->rate = rule->lr;
    if (!sums) return;
    const double low = Narrow<double>::of(rule->lower_bound);
    const double high = Narrow<double>::of(rule->upper_bound);
    double norm = root(sums[0]);
    norm = norm < low ? low : norm;
    norm = norm > high ? high : norm;
    if (norm != 0 && sums[1] != 0) {
        rule->rate = Narrow<COMPUTE>::of(Narrow<double>::of(rule->lr) * norm / root(sums[1]));
    }
}

#endif
