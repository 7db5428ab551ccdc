"""The golden ops of `condseg.layers`."""
