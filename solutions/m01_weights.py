# %% [markdown]
# # {{m01}}
#
# A trained network is a few hundred thousand 32-bit numbers. In this module you turn them into integers of 8 bits and fewer, and see
# what that costs.
#
# **You will be able to** say what range a layer's weights have, choose a scale, ...

# %%
import matplotlib.pyplot as plt
import numpy as np

import labkit
from labkit.course import check
from labkit.course.look import BLUE, ORANGE, use_look

use_look()
data = labkit.data.load("auto")
module = labkit.models.load("lenet", data=data.name)
print(data.reason)

# %% [markdown]
# ## 1 What range do weights have?
#
# ### {{m01.q1}}
#
# Write a function that returns ...


# %%
def weight_ranges(w):
    """The actual range and the 3-sigma range of a layer's weights.

    w: float32 array of any shape
    Returns ((low, high), (mean - 3 sigma, mean + 3 sigma)), real numbers; sigma is the standard deviation of all weights.
    """
    ### BEGIN SOLUTION
    mean, sigma = w.mean(), w.std()
    return (w.min(), w.max()), (mean - 3 * sigma, mean + 3 * sigma)
    ### END SOLUTION


# %%
check("m01.q1")

# %% [markdown]
# ### {{m01.q2}}


# %%
def symmetric_scale(w, bits):
    """The step S of a symmetric grid of so many bits, so that the largest magnitude falls on the largest integer.

    w: float32 array of any shape, not all zeros; bits: 2 to 8
    Returns a positive number.
    """
    ### BEGIN SOLUTION
    largest = 2 ** (bits - 1) - 1
    return np.abs(w).max() / largest
    ### END SOLUTION


# %%
check("m01.q2")

# %% [markdown]
# ### {{m01.e1}}

# %%
m01_e1 = """
### BEGIN SOLUTION
With -127..127 every weight's negative has an integer too, and both ends are equally far from 0, so one scale max|w|/127 uses the
whole grid. It also keeps products smaller.
### END SOLUTION
"""

# %%
check("m01.e1")
